r"""ReLA on RefCOCO, RefCOCO+ or RefCOCOg, where every expression has one target.

    python -m tools.build_dataset --dataset=refcoco/unc_raw --source_dir=DIR --data_dir=data
    python main.py --config=configs/refcoco_rela.py --workdir=runs/refcoco_rela

Recipe, starting weights and memory: see `configs/grefcoco_rela.py`. Only the data and the protocol
differ (`lavt`: oIoU and precision at 480 x 480 pixels). For RefCOCO+:
`--config.data.dataset=refcoco_plus/unc_raw`. For RefCOCOg: `--config.data.dataset=refcocog/umd_raw`
with `--config.evals.testA.split=test --config.evals.testB.when=never`.

Time and score: not run at full size here. The paper reports oIoU of 73.82 / 76.48 / 70.18 on val /
testA / testB.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import grefcoco_rela


def get_config(preset: str = "B") -> ConfigDict:
    """The experiment, of a model of some size."""
    config: Any = grefcoco_rela.get_config(preset)
    config.data.update({"dataset": "refcoco/unc_raw", "granularities": ("object",)})
    config.eval.protocol = "lavt"
    config.checkpoint.best_metric = "val/oIoU"
    return config
