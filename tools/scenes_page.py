"""Makes the table of docs/scenes.md: how often each form and wording is asked, and how often it matches.

    python -m tools.scenes_page            prints the table
    python -m tools.scenes_page --write    writes it into the page (a minute)

The questions of the default build are drawn again, so the dataset need not be built.
"""

import argparse
import collections
from collections.abc import Mapping, Sequence
from pathlib import Path

from input_pipeline.datasets.scenes.config import ScenesConfig
from input_pipeline.datasets.scenes.records import questions
from refseg_jax.batch import ABSENCES
from refseg_jax.cli.command_line import command_parser, ended
from refseg_jax.cli.signals import leave

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scenes.md"
BEGIN, END = "<!-- questions: begin -->\n", "<!-- questions: end -->"
#: Wordings that are asked less often share a row.
_LEAST = 30

#: (form, wording) -> images in which it matches, and images in which it does not.
Counts = Mapping[tuple[str, str], tuple[int, int]]


def count(config: ScenesConfig, split: str) -> Counts:
    """Counts the questions of a main split by form and wording."""
    found: dict[tuple[str, str], list[int]] = collections.defaultdict(lambda: [0, 0])
    for index in range(config.images(split)):
        for question in questions(config, split, index):
            found[question.form, question.wording][not question.targets] += 1
    return {key: (yes, no) for key, (yes, no) in found.items()}


def table(counts: Counts, least: int = _LEAST) -> str:
    """A Markdown table: a row for each form and wording, the forms in the order of `ABSENCES`."""
    lines = ["| form | wording | matches | matches nothing |", "| --- | --- | --- | --- |"]
    for form in ABSENCES:
        rare = [0, 0]
        known = {wording: pair for (one, wording), pair in counts.items() if one == form}
        for wording, pair in sorted(known.items(), key=lambda item: (-sum(item[1]), item[0])):
            if sum(pair) >= least:
                lines.append(f"| {form} | {wording} | {pair[0]:,} | {pair[1]:,} |")
            else:
                rare = [a + b for a, b in zip(rare, pair, strict=True)]
        if any(rare):
            lines.append(f"| {form} | other wordings | {rare[0]:,} | {rare[1]:,} |")
        total = [sum(pair[side] for pair in known.values()) for side in (0, 1)]
        lines.append(f"| **{form}** | **all** | **{total[0]:,}** | **{total[1]:,}** |")
    return "\n".join(lines) + "\n"


def replaced(page: str, made: str) -> str:
    """The page with another table between its markers."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{made}\n{END}{tail}"


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = command_parser("tools.scenes_page", __doc__)
    parser.add_argument("--write", action="store_true", help="write the page instead of printing")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    write = make_parser().parse_args(arguments).write

    def work() -> None:
        made = table(count(ScenesConfig(), "train"))
        if write:
            PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
        print(f"written: {PAGE}" if write else made)

    return ended(work)


if __name__ == "__main__":
    leave(main())
