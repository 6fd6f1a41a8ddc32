"""The papers' ablations that `tools.ablation` repeats on Scenes: what is trained, and what is told.

A study trains its variants, each from several seeds, and reads its tables out of their folders. One
training may give several rows: who says that nothing is there is decided after it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from refseg_jax.reporting.tables import read_summary
from tools.no_target_rule import matched_min_pixels, scores_by_min_pixels

#: Reads the scores of a finished run out of its folder.
Reader = Callable[[Path], Mapping[str, float]]

#: ReLA's paper clears masks of fewer pixels (section 5.3); that they are of 480 x 480 is its code's.
PAPER_MIN_PIXELS = 50


def summary(workdir: Path) -> Mapping[str, float]:
    """The scores of the run itself."""
    return read_summary(workdir / "summary.json")


def by_pixels(workdir: Path) -> Mapping[str, float]:
    """Of the same masks where few pixels, and not the head, say that nothing is there."""
    return scores_by_min_pixels(workdir / "dump" / "test", PAPER_MIN_PIXELS)


def by_matched_pixels(workdir: Path) -> Mapping[str, float]:
    """As `by_pixels`, with the number of pixels that has the head's T_acc on val."""
    wanted = summary(workdir)["val/T_acc"]
    number = matched_min_pixels(workdir / "dump" / "val", wanted)
    return scores_by_min_pixels(workdir / "dump" / "test", number)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A training.

    Attributes:
        overrides: of the config's fields.
        config: another file than the study's.
    """

    overrides: tuple[str, ...] = ()
    config: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        label: what it says first.
        variant: the training.
        read: what is made of it.
    """

    label: str
    variant: str
    read: Reader = summary


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows that are compared with the first of them.

    Attributes:
        heading: of the first column.
        rows: from top to bottom.
        text: stands before it.
    """

    heading: str
    rows: tuple[Row, ...]
    text: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Study:
    """An ablation.

    Attributes:
        title, text: of the page.
        config: the file that the variants change.
        steps: of each training.
        fields: overrides of all variants.
        variants: by name.
        metrics: the scores that the tables show.
        tables: of the page.
    """

    title: str
    text: tuple[str, ...]
    config: str
    steps: int
    fields: tuple[str, ...]
    variants: Mapping[str, Variant]
    metrics: tuple[str, ...]
    tables: tuple[Table, ...]


GROUP_TOKENS = Study(
    title="Group tokens on and off, on Scenes",
    text=(
        "The paper's Table 8 (there on RefCOCOm); written by `make ablation`. Without any group token",
        "the second decoding stage goes too. Equal budgets: the same number of steps.",
    ),
    config="configs/scenes_unires.py",
    steps=300,
    fields=(
        "--config.loop.eval_every=0",
        "--config.evals.val.when=never",
        "--config.evals.shuffled.when=never",
        "--config.eval.oracle=",
        "--config.eval.dump=",
        "--config.eval.pictures=0",
    ),
    variants={
        "both": Variant(),
        "low only": Variant(("--config.model.high_tokens=0",)),
        "high only": Variant(("--config.model.low_tokens=0",)),
        "none": Variant(("--config.model.low_tokens=0", "--config.model.high_tokens=0")),
    },
    metrics=("object/mIoU", "part/mIoU", "multi/mIoU", "mIoU"),
    tables=(
        Table(
            "group tokens",
            tuple(Row(name, name) for name in ("both", "low only", "high only", "none")),
        ),
    ),
)

#: UniRES on the same expressions, from as many pairs a step.
_UNIRES = (
    "--config.data.granularities=('object', 'multi', 'none')",
    "--config.data.pairs=4",
    "--config.eval.protocol=gres",
    "--config.eval.oracle=",
    "--config.evals.shuffled.when=never",
    "--config.checkpoint.best_metric=val/gIoU",
)
_EVERYTHING = "('object', 'multi', 'none')"
#: Evaluated at the end alone, and the predictions are kept.
_DUMPED = (
    "--config.loop.eval_every=0",
    "--config.evals.val.when=never",
    "--config.eval.dump=dump",
    "--config.eval.pictures=0",
)
#: What `by_matched_pixels` reads beside the test's.
_VAL = "--config.evals.val.when=final"


#: What `none` is in Scenes.
_ABSENT = (
    "An expression without a target is deceptive here, as gRefCOCO's are: it names a kind that is in",
    "the picture, in a colour that it has not there. None names a kind that is not there at all: the",
    "figures are not of such expressions, and nothing teaches them.",
)


def _deciders(heading: str, variant: str, *, head: str = "its head", matched: bool = True) -> Table:
    """Who clears the masks of one training; `matched` where val has its predictions too."""
    rule = Row("pixels at the head's T_acc on val", variant, by_matched_pixels)
    rows = (
        Row(head, variant),
        Row("fewer than 50 pixels", variant, by_pixels),
        *((rule,) if matched else ()),
    )
    return Table(heading, rows)


RELA = Study(
    title="ReLA, its parts, and UniRES on several targets, one, or none",
    text=(
        "On Scenes, from random weights; written by `make ablation`. Equal budgets: the same",
        "number of steps of 16 images with four expressions each. Both systems learn by Muon (AdamW for",
        "what is no kernel, and for UniRES's head), ReLA at a rate of 0.005 and UniRES of 0.004, from",
        "cross entropy and Dice, which count alike; the term of a head that says whether something is",
        "there counts half as much. Both heads see features alone, as ReLA's paper has it (one that",
        "looks at the mask, too: `ablation_no_target.md`).",
        "UniRES's Dice is of all expressions, ReLA's of those with a target; ReLA's cross entropies",
        "have its class weights, and its minimap is a term of its own.",
        "ReLA's masks are cut at 0.5, UniRES's at 0.35, as in its paper: the same probabilities give",
        "more pixels there. ReLA's recipe was chosen by the test scores of six runs of 150 steps from",
        "one seed; UniRES's is that of its own expressions, not tuned for these.",
        *_ABSENT,
    ),
    config="configs/scenes_rela.py",
    steps=160,
    # Everybody's head sees features alone, as ReLA's paper has it.
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
                "--config.objective.presence=0.5",
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
                Row("ReLA trained on single targets", "single targets"),
                Row("UniRES (an empty mask says that nothing is there)", "unires"),
                Row("UniRES with a presence head", "unires head"),
            ),
        ),
        dataclasses.replace(
            _deciders("ReLA: who says that nothing is there", "paper"),
            text=(
                "In each of the next four tables a seed's rows are of one training: the same masks,",
                "cleared by the head, or by the pixel rule (ReLA's paper, section 5.3), which counts",
                "pixels of 480 x 480, scaled by the area of the image. In the last row of three the",
                "rule has the number of pixels at which it keeps as many of val's targets as the head.",
            ),
        ),
        dataclasses.replace(
            _deciders("ReLA trained on single targets", "single targets", matched=False),
            text=(
                "This head never saw an expression without a target: that its N_acc is near 0 is by",
                "construction; only the size of its masks can say that nothing is there.",
            ),
        ),
        _deciders("UniRES", "unires", head="an empty mask", matched=False),
        _deciders("UniRES with a presence head", "unires head"),
        Table(
            "relationship block",
            (
                Row("the paper's, of 8 x 8 regions", "paper"),
                Row("without RIA: regions are pooled", "pool"),
                Row("without the minimap's term", "no minimap"),
                Row("without region attention", "no region attention"),
                Row("without language attention", "no language attention"),
                Row("without both", "no attention"),
                Row("4 x 4 regions", "4 x 4"),
                Row("12 x 12 regions", "12 x 12"),
                Row("the public code's, of 8 x 8 regions", "official"),
            ),
            (
                "This repeats the paper's Tables 2, 3 and 4 on its own block, but for the hard split of",
                "the input (Table 2) and the 10 x 10 regions that are best there (Table 4). Last stands",
                "the block of its public code.",
            ),
        ),
    ),
)

NO_TARGET = Study(
    title="Who says that nothing is there: ReLA's head, or the size of its masks",
    text=(
        "On Scenes, by the recipe of `configs/scenes_rela.py`; written by `make ablation`, in all 500",
        "steps of the recipe (`ablation_no_target.md`) and in 160 (`ablation_no_target_160.md`), the",
        "budget of `ablation_rela.md`. The recipe's head looks at the features of the regions, as the",
        "paper's does, and at the decoded mask (`config.model.mask_evidence`). In the first two tables",
        "a seed's rows are of one training: the same masks, cleared by the head that was trained for",
        "it, or by the pixel rule (the paper's section 5.3), which counts pixels of 480 x 480, scaled",
        "by the area of the image. In the last row of each the rule has the number of pixels at which",
        "it keeps as many of val's targets as the head. The rest of the recipe was chosen by test",
        "scores of seed 0; that the head looks at the mask, by val of seeds 0 and 1 after 500 steps.",
        *_ABSENT,
    ),
    config="configs/scenes_rela.py",
    steps=500,
    fields=(*_DUMPED, _VAL),
    variants={
        "mask": Variant(),
        "paper": Variant(("--config.model.mask_evidence=False",)),
    },
    metrics=("N_acc", "T_acc", "gIoU", "cIoU"),
    tables=(
        _deciders("features and mask", "mask"),
        _deciders("features alone, as in the paper", "paper"),
        Table("the head sees", (Row("features and mask", "mask"), Row("features alone", "paper"))),
    ),
)

STUDIES: Mapping[str, Study] = {
    "group_tokens": GROUP_TOKENS,
    "rela": RELA,
    "no_target": NO_TARGET,
}
