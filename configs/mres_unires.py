r"""UniRES pre-trained as on MRES-32M (the paper's supplement A.3), on any dataset of the one record.

    python main.py --config=configs/mres_unires.py --workdir=runs/pretrain \
        --config.data.dataset=NAME --config.data.data_dir=DIR \
        --config.init.clip=openai/clip-vit-base-patch16

Another size of the model is `--config=configs/mres_unires.py:L/14`, with
`--config.init.clip=openai/clip-vit-large-patch14`; where there is no network, a file or folder takes
the place of the name (docs/weights.md). Without `config.init.clip` it starts from random weights.

Batch 128, 50 epochs, 5 of them warm-up, AdamW 1e-5 with weight decay 5e-4. MRES-32M itself was never
released. It has dozens of expressions an image, so that 8 are drawn for an image that is encoded
once: 16 images make the paper's 128 pairs. Not run at full size here: no such dataset is public.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import base_config, evaluation, unires


def get_config(preset: str = "B/16") -> ConfigDict:
    """The experiment, of a model of some size."""
    config: Any = base_config()
    config.epochs = 50.0
    config.batch_size = 16
    config.model = unires(preset)
    config.data.update(
        {
            "dataset": "scenes",
            "sampling": "image",
            "pairs": 8,
            "granularities": ("object", "part"),
            "num_workers": 8,
        }
    )
    config.optim.update({"lr": 1e-5, "weight_decay": 5e-4, "warmup": 0.1})
    config.loop.update({"eval_every": 5000, "save_every": 2000})
    config.evals.val = evaluation("val", prefix="val/", when="during")
    config.checkpoint.best_metric = "val/mIoU"
    return config
