r"""UniRES on your own pictures, from a checkpoint, an exported folder, or CLIP.

    python -m tools.build_dataset --dataset=jsonl --name=mine --source_dir=FOLDER --data_dir=data
    python main.py --config=configs/own_unires.py:tiny --workdir=runs/mine \
        --config.init.checkpoint=exported

The dataset needs the splits `train` and `val` (docs/own_data.md); `--config.data.dataset=NAME`
chooses another than `mine`. The size after the colon is that of the checkpoint. Without a
checkpoint, take `B/16` and `--config.init.clip=openai/clip-vit-base-patch16`.

Expressions that match nothing (`none`) are left out: UniRES does not learn them by default.
Pictures in `val` with a side above 1024 pixels need a larger `--config.eval.canvas`.

Time and score depend on the data.
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
