r"""UniRES on pictures of one's own, from a checkpoint, an exported folder, or CLIP.

    python -m tools.build_dataset --dataset=jsonl --name=mine --source_dir=FOLDER --data_dir=data
    python main.py --config=configs/own_unires.py:tiny --workdir=runs/mine \
        --config.init.checkpoint=exported

The dataset `mine` (another: `--config.data.dataset=NAME`) has the splits `train` and `val`
(docs/data.md). The size behind the colon is that of the checkpoint; without a checkpoint take `B/16`
and `--config.init.clip=openai/clip-vit-base-patch16`. All expressions are trained on but those that
match nothing, which UniRES does not learn. Pictures in `val` of more than 1024 pixels a side need
`--config.eval.canvas`.

How long it takes and what it scores depends on the data; no number is promised.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import base_config, evaluation, unires


def get_config(preset: str = "B/16") -> ConfigDict:
    """The experiment, of a model of some size."""
    config: Any = base_config()
    config.steps = 200
    config.batch_size = 8
    config.model = unires(preset)
    config.data.dataset = "mine"
    config.optim.update({"lr": 2e-4 if preset == "tiny" else 1e-5, "warmup": 0.1})
    config.loop.update({"eval_every": 100, "save_every": 50})
    config.eval.update({"canvas": (1024, 1024), "batch_size": 8})
    config.evals.val = evaluation("val", prefix="val/", when="during")
    config.checkpoint.best_metric = "val/mIoU"
    return config
