r"""UniRES pre-trained as on MRES-32M (the paper's supplement A.3), on any dataset of the one record.

    python main.py --config=configs/mres_unires.py --workdir=runs/pretrain \
        --config.data.dataset=NAME --config.data.data_dir=DIR \
        --config.init.clip=openai/clip-vit-base-patch16

Another size of the model is `--config=configs/mres_unires.py:L/14`, with
`--config.init.clip=openai/clip-vit-large-patch14`; where there is no network, a file or folder takes
the place of the name (docs/weights.md). Without `config.init.clip` it starts from random weights.

Eight processes read and decode images (`config.data.num_workers`; none for `:tiny`), which is for a
machine with an accelerator and at least as many cores.

Several datasets are named behind the size, and mixed: `configs/mres_unires.py:B/16,mine,refcoco/unc`.
Batches are of one dataset each, in equal shares unless `config.mixture.refcoco_unc.weight` or the
other's says so, without any image of an evaluation set that is built (docs/data.md). Each dataset is
scored on its own `val`, with its name before the scores.

Batch 128, 50 epochs, 5 of them warm-up, AdamW 1e-5 with weight decay 5e-4. MRES-32M itself was never
released. It has dozens of expressions an image, so that 8 are drawn for an image that is encoded
once: 16 images make the paper's 128 pairs. Not run at full size here: no such dataset is public.
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
