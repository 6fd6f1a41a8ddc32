r"""UniRES fine-tuned on RefCOCO, RefCOCO+ or RefCOCOg (paper, supplement A.3).

    python -m tools.build_dataset --dataset=refcoco/unc --source_dir=DIR --data_dir=data
    python main.py --config=configs/refcoco_unires.py --workdir=runs/refcoco \
        --config.init.checkpoint=runs/pretrain

Recipe: batch 64, 15 epochs with one epoch of warm-up, AdamW at 1e-5 with weight decay 5e-4, text
length 17 (22 for RefCOCOg), threshold 0.35.

Start: without a pre-trained run, take CLIP (`--config.init.clip=openai/clip-vit-base-patch16`, or a
file or folder where there is no network: docs/weights.md). The default is random weights, which
needs no download but is not the paper's recipe.

Data: `--config.data.dataset=refcoco_plus/unc` for RefCOCO+. For RefCOCOg, `refcocog/umd` with
`--config.data.context_length=22 --config.evals.testA.split=test --config.evals.testB.when=never`.

Model size: `--config=configs/refcoco_unires.py:B/32` (`L/14`, `tiny`).

Time and score: not run at full size here; CLIP's weights and COCO are not at hand on this project's
machines. The paper reports 79.2 / 81.6 / 76.6 mIoU on val / testA / testB after pre-training on
MRES-32M, and 75.2 on val without it.

Smoke test on a few real images, from random weights: the command below learnt the 26 training
referents of a small sample to 97.8 mIoU in 400 steps of 13 (7.2 minutes on 2 cores). Held-out
images stay near 0, as expected.

    python main.py --config=configs/refcoco_unires.py:tiny --workdir=runs/overfit \
        --config.model.image_size=224 --config.epochs=0. --config.steps=400 \
        --config.batch_size=13 --config.data.num_workers=0 --config.optim.lr=2e-3 \
        --config.optim.warmup=0.05 "--config.optim.muon=(?!head\.).*\.kernel" \
        --config.objective.dice=1. --config.loop.eval_every=0 --config.evals.train.when=final
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import base_config, evaluation, unires


def get_config(preset: str = "B/16") -> ConfigDict:
    """The experiment, of a model of some size."""
    config: Any = base_config()
    config.epochs = 15.0
    config.batch_size = 64
    config.model = unires(preset)
    config.data.update(
        {
            "dataset": "refcoco/unc",
            "sampling": "referent",
            "pairs": 1,
            "granularities": ("object",),
            "num_workers": 8,
        }
    )
    config.optim.update({"lr": 1e-5, "weight_decay": 5e-4, "warmup": 1 / 15})
    config.loop.update({"eval_every": 2000, "save_every": 1000})
    config.evals.val = evaluation("val", prefix="val/", when="during")
    config.evals.testA = evaluation("testA", prefix="testA/")
    config.evals.testB = evaluation("testB", prefix="testB/")
    config.evals.train = evaluation("train", prefix="train/", when="never")
    config.checkpoint.best_metric = "val/mIoU"
    return config
