r"""UniLSeg on its supervised mixture and on pseudo labels: the second stage of its training (4.1).

    python main.py --config=configs/unilseg.py:B,pseudo_objects --workdir=runs/unilseg \
        --config.init.checkpoint=runs/unilseg_pretrain --config.data.data_dir=DIR

Data: RefCOCO, gRefCOCO, COCO-Stuff, Ref-YouTube-VOS, PartImageNet, LIP, ECSSD and DUTS (section
3.3), each built under its name in `SUPERVISED` (docs/datasets.md). The names behind the size are
datasets of your own with pseudo labels, on which patches are hidden with a probability of 0.2; `B`
alone trains without any. To train without one of the eight, take it out of `SUPERVISED`.

Prompts are those of Table 1: natural captions, "the most salient object", and "all {}" for
categories and parts ("all head of quadruped").

Recipe: Adam at 1e-4, a tenth of that after 10 of 15 epochs and for the backbone; cross entropy and
Dice; 480 pixels, no augmentation; one expression of each object is drawn. Batch normalisation is
that of the public code; `--config.model.norm=group` suits a few devices with small batches.

Not stated in the paper, and chosen here:

- batch 64, no weight decay, no clipping, no warm-up: CRIS's, to whose training code the authors
  refer;
- shares of the datasets (its Figure 3 draws them without numbers): by the number of images, see
  `SUPERVISED`; a pseudo-labelled dataset weighs 100;
- an epoch: as many rows as all datasets have objects;
- expressions without a target (gRefCOCO, and frames without the object): kept, with empty masks;
- leakage: images of every evaluation set that is built are left out (docs/pretraining.md), but for
  ECSSD, which has only the split that the paper both trains on and reports in Table 6.

Start: without a first stage, take the towers' published weights,
`--config.init.swin=microsoft/swin-base-patch4-window7-224-in22k` and
`--config.init.clip=openai/clip-vit-base-patch16` (docs/weights.md).

Time and score: not run at full size here; neither the datasets nor the weights are at hand on this
project's machines. Published scores: `configs/unilseg_eval.py`.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import base_config, evaluation, member, prompt_objective, unilseg

#: Template of Table 1 for parts, which datasets name "{part} of {object}".
PARTS = "all {}"

#: The supervised datasets. The weight is the number of training images in thousands: as published, and
#: of Ref-YouTube-VOS 3,471 videos with 27 annotated frames each, the mean of its valid split.
SUPERVISED: dict[str, dict[str, Any]] = {
    "refcoco": {"weight": 17.0, "dataset": "refcoco/unc", "granularities": ("object",)},
    "grefcoco": {
        "weight": 17.0,
        "dataset": "grefcoco/unc",
        "granularities": ("object", "multi", "none"),
    },
    "coco_stuff": {"weight": 118.0, "dataset": "coco_stuff", "granularities": ("category",)},
    "ref_youtube_vos": {
        "weight": 94.0,
        "dataset": "ref_youtube_vos",
        "granularities": ("object", "none"),
    },
    "partimagenet": {
        "weight": 17.0,
        "dataset": "partimagenet/ood",
        "granularities": ("part",),
        "part_prompt": PARTS,
    },
    "lip": {
        "weight": 30.0,
        "dataset": "lip",
        "granularities": ("part",),
        "part_prompt": PARTS,
    },
    "ecssd": {
        "weight": 1.0,
        "dataset": "ecssd",
        "split": "test",
        "granularities": ("salient",),
        "keep_held_out": ("ecssd/test",),
    },
    "duts": {"weight": 11.0, "dataset": "duts", "granularities": ("salient",)},
}

#: Weight of a pseudo-labelled dataset. The paper states no share.
PSEUDO_WEIGHT = 100.0

#: What an annotation engine may write.
PSEUDO_GRANULARITIES = ("object", "part", "multi", "category", "salient")


def get_config(choice: str = "B") -> ConfigDict:
    """The experiment, of a model of some size, optionally on pseudo labels too: `B,NAME,...`."""
    preset, *pseudo = choice.split(",")
    config: Any = base_config()
    config.epochs = 15.0
    config.batch_size = 64
    config.model = unilseg(preset)
    config.data.update(
        {
            "dataset": "refcoco/unc",
            "sampling": "referent",
            "pairs": 1,
            "granularities": ("object",),
            "num_workers": 0 if preset == "tiny" else 8,
        }
    )
    for name, fields in SUPERVISED.items():
        config.mixture[name] = member(**fields)
    add_pseudo_labels(config, pseudo, weight=PSEUDO_WEIGHT)
    config.objective = prompt_objective()
    config.optim.update(
        {
            "lr": 1e-4,
            "warmup": 0.0,
            "drops": (10 / 15,),
            "weight_decay": 0.0,
            "clip_norm": 0.0,
            "lr_multipliers": ((r"vision\..*", 0.1), (r".*", 1.0)),
        }
    )
    config.loop.update({"eval_every": 5000, "save_every": 2000})
    config.eval.threshold = 0.5
    config.evals.val = evaluation("val", prefix="val/", when="during")
    config.evals.testA = evaluation("testA", prefix="testA/")
    config.evals.testB = evaluation("testB", prefix="testB/")
    config.checkpoint.best_metric = "val/oIoU"
    return config


def add_pseudo_labels(config: Any, datasets: list[str], *, weight: float) -> None:
    """Adds a pseudo-labelled member for each dataset, named after it."""
    for dataset in datasets:
        config.mixture[dataset.replace("/", "_")] = member(
            weight=weight,
            dataset=dataset,
            granularities=PSEUDO_GRANULARITIES,
            pseudo_labelled=True,
        )
