"""UniLSeg on Scenes: every granularity by its prompt, from random weights on a laptop.

    python -m tools.build_dataset --dataset=scenes --data_dir=data
    python main.py --config=configs/scenes_unilseg.py --workdir=runs/scenes_unilseg

Time: 13 minutes 22 seconds on 2 cores without an accelerator, at 1.1 s a step.

Score on held-out scenes (one run, seed 0), mIoU: objects 59.0, parts 52.6, several targets 70.8,
categories 78.0, salient object 61.1. With the words of other targets: objects 13.1, parts 13.3.
The depth of the backbone was chosen by val scores of two runs: objects 58.7 with the preset's stages of
1, 1 and 2 layers, 59.7 with these.

The decoder is the paper's, with a residual around Pre-Fusion. The prompts are those of Table 1: "all
houses", "the most salient object", and for objects and parts the captions. Masks are cut at 0.5.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import base_config, evaluation, prompt_objective, unilseg


def get_config() -> ConfigDict:
    """The experiment."""
    config: Any = base_config()
    config.steps = 600
    config.batch_size = 16
    config.data.update(
        {
            "dataset": "scenes",
            "pairs": 8,
            "granularities": ("object", "part", "multi", "category", "salient"),
        }
    )
    config.model = unilseg("tiny", form="paper", fusion_residual=True, swin_depths=(1, 2, 6))
    config.objective = prompt_objective()
    config.optim.update(
        {
            "lr": 4e-3,
            "weight_decay": 0.01,
            "warmup": 0.05,
            "b2": 0.98,
            "muon": r".*\.kernel",
        }
    )
    config.loop.update({"log_every": 10, "eval_every": 300, "save_every": 100})
    config.eval.update(
        {
            "canvas": (128, 128),
            "batch_size": 32,
            "pairs": 8,
            "threshold": 0.5,
            "pictures": 16,
            "dump": "dump",
        }
    )
    config.evals.val = evaluation("val", prefix="val/", when="during")
    config.evals.test = evaluation("test")
    config.evals.shuffled = evaluation("test", prefix="shuffled/", shuffled=True)
    config.checkpoint.best_metric = "val/mIoU"
    return config
