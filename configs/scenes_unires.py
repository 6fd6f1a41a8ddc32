"""UniRES on Scenes: the embedded default, trained from random weights on a laptop.

    make run
    python main.py --config=configs/scenes_unires.py --workdir=runs/scenes_unires

Time: `make run` took 10 minutes on 2 cores without an accelerator, 7.6 of them training.

Score on held-out scenes, mIoU: objects 75.8, parts 63.8, several targets 78.2, categories 82.5,
salient object 83.2. With the words of other targets: objects 4.5, parts 8.9.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import base_config, evaluation, unires


def get_config() -> ConfigDict:
    """The experiment."""
    config: Any = base_config()
    config.steps = 700
    config.batch_size = 16
    config.data.update(
        {
            "dataset": "scenes",
            "pairs": 8,
            "granularities": ("object", "part", "multi", "category", "salient"),
        }
    )
    config.model = unires("tiny")
    config.objective.dice = 1.0
    config.optim.update(
        {
            "lr": 4e-3,
            "weight_decay": 0.01,
            "warmup": 0.05,
            "b2": 0.98,
            "muon": r"(?!head\.).*\.kernel",
        }
    )
    # A save holds training up for 0.2 s, and a killed run loses a minute instead of three.
    config.loop.update({"log_every": 10, "eval_every": 350, "save_every": 100})
    config.eval.update(
        {
            "canvas": (128, 128),
            "batch_size": 32,
            "pairs": 8,
            "pictures": 16,
            "dump": "dump",
            "oracle": "test",
        }
    )
    config.evals.val = evaluation("val", prefix="val/", when="during")
    config.evals.test = evaluation("test")
    config.evals.shuffled = evaluation("test", prefix="shuffled/", shuffled=True)
    config.checkpoint.best_metric = "val/mIoU"
    return config
