r"""ReLA on RefCOCO, RefCOCO+ or RefCOCOg, where every expression has one target.

    python -m tools.build_dataset --dataset=refcoco/unc_raw --source_dir=DIR --data_dir=data
    python main.py --config=configs/refcoco_rela.py --workdir=runs/refcoco_rela

As `configs/grefcoco_rela.py`, which has the rest to say, but for the data and the protocol (`lavt`:
oIoU and precision on 480 x 480 pixels). For RefCOCO+: `--config.data.dataset=refcoco_plus/unc_raw`; for
RefCOCOg: `--config.data.dataset=refcocog/umd_raw` with
`--config.evals.testA.split=test --config.evals.testB.when=never`.

The paper reports oIoU of 73.82 / 76.48 / 70.18 on val / testA / testB. Not run here at full size.
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
