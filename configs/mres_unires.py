r"""UniRES pre-training, as on MRES-32M (paper, supplement A.3), on any built dataset.

    python main.py --config=configs/mres_unires.py --workdir=runs/pretrain \
        --config.data.dataset=NAME --config.data.data_dir=DIR \
        --config.init.clip=openai/clip-vit-base-patch16

Recipe: batch 128, 50 epochs with 5 epochs of warm-up, AdamW at 1e-5 with weight decay 5e-4. The
batch is 16 images with 8 expressions each: each image is encoded once, and 16 x 8 makes the paper's
128 pairs.

Model size: `--config=configs/mres_unires.py:L/14` with
`--config.init.clip=openai/clip-vit-large-patch14`. Without a network, give a file or folder in
place of the name (docs/weights.md). Without `config.init.clip`, training starts from random
weights.

Several datasets: `--config=configs/mres_unires.py:B/16,mine,refcoco/unc`. Each batch comes from one
dataset, in equal shares unless the members' weights differ. Images of every built evaluation set
are left out (docs/pretraining.md). Each dataset is scored on its own `val`; its name prefixes the
scores.

Eight worker processes read and decode images (`config.data.num_workers`; none for `:tiny`). This
suits a machine with an accelerator and at least eight cores.

Time and score: not run at full size here. MRES-32M was never released.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import base_config, evaluation, member, unires


def get_config(choice: str = "B/16") -> ConfigDict:
    """The experiment, of a model of some size, optionally on some datasets: `B/16,NAME,...`."""
    preset, *datasets = choice.split(",")
    config: Any = base_config()
    config.epochs = 50.0
    config.batch_size = 16
    config.model = unires(preset)
    config.data.update(
        {
            "dataset": datasets[0] if datasets else "scenes",
            "sampling": "image",
            "pairs": 8,
            "granularities": ("object", "part"),
            # An accelerator is fed by processes; the small model, on a laptop, by threads of its own.
            "num_workers": 0 if preset == "tiny" else 8,
        }
    )
    config.optim.update({"lr": 1e-5, "weight_decay": 5e-4, "warmup": 0.1})
    config.loop.update({"eval_every": 5000, "save_every": 2000})
    if len(datasets) > 1:
        names = [dataset.replace("/", "_") for dataset in datasets]
        for name, dataset in zip(names, datasets, strict=True):
            config.mixture[name] = member(dataset=dataset)
            config.evals[name] = evaluation(
                "val", dataset=dataset, prefix=f"{name}/", when="during"
            )
        config.checkpoint.best_metric = f"{names[0]}/mIoU"
    else:
        config.evals.val = evaluation("val", prefix="val/", when="during")
        config.checkpoint.best_metric = "val/mIoU"
    return config
