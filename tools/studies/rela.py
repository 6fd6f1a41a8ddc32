"""Studies of ReLA."""

import dataclasses

from tools.studies.study import (
    PAPER_MIN_PIXELS,
    Row,
    Study,
    Table,
    Variant,
    by_matched_pixels,
    by_pixels,
)

_EVERYTHING = "('object', 'part', 'multi', 'category', 'none')"
#: UniRES on the same expressions as ReLA, with as many pairs per step.
_UNIRES = (
    f"--config.data.granularities={_EVERYTHING}",
    "--config.data.pairs=4",
    "--config.eval.protocol=gres",
    "--config.eval.oracle=",
    "--config.evals.shuffled.when=never",
    "--config.checkpoint.best_metric=val/gIoU",
)
#: Evaluates only at the end, and keeps the predictions.
_DUMPED = (
    "--config.loop.eval_every=0",
    "--config.evals.val.when=never",
    "--config.eval.dump=dump",
    "--config.eval.pictures=0",
)
#: Evaluates val as well, which `by_matched_pixels` needs.
_VAL = "--config.evals.val.when=final"


#: Text on the expressions of granularity `none` in Scenes.
_ABSENT = (
    "- **Absent expressions** are of seven forms, each asked as often where it matches as where it does",
    "  not, so that the words alone do not tell.",
)
#: Text on the rows of `_deciders`.
_RULE = (
    "The pixel rule (ReLA's paper, section 5.3) clears masks with fewer than 50 pixels, counted at",
    "480 x 480 and scaled with the area. *Matched* takes, in place of 50, the number at which the rule",
    "keeps as many of val's targets as the head does. A table with pixel rules compares within the same",
    "trainings: the masks are the same, and only who clears them differs.",
)


def _deciders(
    heading: str, variant: str, *, head: str = "presence head", matched: bool = True
) -> Table:
    """Table of the rules that clear the masks of one training.

    Args:
        heading: heading of the first column.
        variant: key of `Study.variants`.
        head: label of the row with the run's own decisions.
        matched: whether to add the matched pixel rule, which needs predictions for val.
    """
    rule = Row("pixel rule, matched", variant, by_matched_pixels)
    rows = (
        Row(head, variant),
        Row(f"pixel rule, {PAPER_MIN_PIXELS}", variant, by_pixels),
        *((rule,) if matched else ()),
    )
    return Table(heading, rows)


RELA = Study(
    title="ReLA: its parts, and UniRES beside it",
    text=(
        "On Scenes, from random weights. All trainings have the same number of steps, of 16 images with",
        "four expressions each.",
        "",
        "- **Optimiser.** Muon for kernels; AdamW for the rest and for UniRES's head. The rate is 0.005",
        "  for ReLA and 0.004 for UniRES.",
        "- **Loss.** Cross entropy, Dice and the term of a presence head, equally weighted.",
        "  UniRES's Dice is a mean over all expressions, ReLA's over those with a target. ReLA's cross",
        "  entropies have its class weights, and its minimap has a term of its own.",
        "- **Presence heads** see features alone, as in ReLA's paper. The study `no_target` has one",
        "  that also sees the mask.",
        "- **Threshold.** 0.5 for ReLA, 0.35 for UniRES, as in its paper: from the same probabilities,",
        "  UniRES's masks have more pixels.",
        "- **Tuning.** ReLA's recipe was chosen on the first version of Scenes, by the test scores of",
        "  six runs of 150 steps from one seed; the weight of its head's term on this one, by val.",
        "  UniRES's recipe is that for its own expressions, not tuned for these.",
        *_ABSENT,
    ),
    config="configs/scenes_rela.py",
    steps=160,
    # All presence heads see features alone, as in ReLA's paper.
    fields=(*_DUMPED, "--config.model.mask_evidence=False"),
    variants={
        "paper": Variant((_VAL,)),
        "single targets": Variant(
            (
                "--config.data.granularities=('object',)",
                f"--config.evals.test.granularities={_EVERYTHING}",
            )
        ),
        "unires": Variant(_UNIRES, "configs/scenes_unires.py"),
        "unires head": Variant(
            (
                *_UNIRES,
                _VAL,
                "--config.model.presence_head=True",
                "--config.objective.presence=1.0",
            ),
            "configs/scenes_unires.py",
        ),
        "pool": Variant(("--config.model.regions=pool",)),
        "no minimap": Variant(("--config.objective.minimap=0.0",)),
        "no region attention": Variant(("--config.model.region_attention=False",)),
        "no language attention": Variant(("--config.model.language_attention=False",)),
        "no attention": Variant(
            ("--config.model.region_attention=False", "--config.model.language_attention=False")
        ),
        "4 x 4": Variant(("--config.model.side=4",)),
        "12 x 12": Variant(("--config.model.side=12",)),
        "official": Variant(("--config.model.relationship=official",)),
    },
    metrics=("gIoU", "cIoU", "N_acc", "T_acc"),
    tables=(
        Table(
            "system",
            (
                Row("ReLA", "paper"),
                Row("ReLA, trained on single targets", "single targets"),
                Row("UniRES, empty mask means absent", "unires"),
                Row("UniRES, presence head", "unires head"),
            ),
            ("## The systems",),
        ),
        dataclasses.replace(
            _deciders("ReLA", "paper"),
            text=("## Who decides that nothing is there", "", *_RULE),
        ),
        dataclasses.replace(
            _deciders("ReLA, trained on single targets", "single targets", matched=False),
            text=(
                "The next head never saw an expression without a target, so its N_acc is near 0 by",
                "construction. Only the size of its masks can tell that nothing is there.",
            ),
        ),
        _deciders("UniRES", "unires", head="empty mask", matched=False),
        _deciders("UniRES, presence head", "unires head"),
        Table(
            "relationship block",
            (
                Row("the paper's, 8 x 8 regions", "paper"),
                Row("pooled regions instead of RIA", "pool"),
                Row("without the minimap's term", "no minimap"),
                Row("without region attention", "no region attention"),
                Row("without language attention", "no language attention"),
                Row("without both", "no attention"),
                Row("4 x 4 regions", "4 x 4"),
                Row("12 x 12 regions", "12 x 12"),
                Row("the public code's, 8 x 8 regions", "official"),
            ),
            (
                "## The relationship block",
                "",
                "This repeats the paper's Tables 2, 3 and 4 on the paper's block, without the hard",
                "split of the input (Table 2) and without 10 x 10 regions, the best there (Table 4).",
            ),
        ),
    ),
)

NO_TARGET = Study(
    title="Who decides that nothing is there",
    text=(
        "ReLA on Scenes, by the recipe of `configs/scenes_rela.py`. Its presence head comes in two",
        "forms. One sees the features of the regions and the decoded mask: this is the recipe's choice",
        "(`config.model.mask_evidence`). The other sees features alone, as in the paper. Both are",
        "compared with the pixel rule.",
        "",
        *_RULE,
        "",
        "- **Tuning.** That the head sees the mask was chosen on the first version of Scenes, by val",
        "  scores of seeds 0 and 1 after 500 steps. The number of steps and the weight of the head's",
        "  term were chosen on this version, by val scores of seed 0.",
        *_ABSENT,
    ),
    config="configs/scenes_rela.py",
    steps=750,
    fields=(*_DUMPED, _VAL),
    variants={
        "mask": Variant(),
        "paper": Variant(("--config.model.mask_evidence=False",)),
    },
    metrics=("N_acc", "T_acc", "gIoU", "cIoU"),
    tables=(
        _deciders("features and mask", "mask"),
        _deciders("features alone, as in the paper", "paper"),
        Table(
            "the head sees",
            (Row("features and mask", "mask"), Row("features alone", "paper")),
            ("The two heads beside each other:",),
        ),
    ),
)
