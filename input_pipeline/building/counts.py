"""What records hold, counted, and how that compares with what is published."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from input_pipeline.facts.published import COUNTED
from input_pipeline.schema import Record

#: What a build found, kept beside the records.
REPORT = "build_report.txt"


@dataclasses.dataclass
class Tally:
    """Counts of records so far; adds up over parts of a split."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    groups: set[str] = dataclasses.field(default_factory=set)

    def add(self, record: Record) -> None:
        """Counts one record."""
        expressions = record.expressions
        self.counts["images"] += 1
        self.counts["refs"] += len({e.referent for e in expressions})
        self.counts["expressions"] += len(expressions)
        self.counts["targets"] += len(record.targets)
        for expression in expressions:
            number = min(len(expression.targets), 2)
            self.counts[("no target", "one target", "several targets")[number]] += 1
        self.groups |= {e.group for e in expressions if e.group}

    def merge(self, other: "Tally") -> None:
        """Adds another part of the same split."""
        self.counts += other.counts
        self.groups |= other.groups

    def result(self) -> dict[str, int]:
        """By the names of `COUNTED`."""
        return {name: self.counts[name] for name in COUNTED[:-1]} | {"groups": len(self.groups)}


def compare(
    built: Mapping[str, Mapping[str, int]], published: Mapping[str, Mapping[str, int]]
) -> list[str]:
    """What was built of each split, line by line, and whether it is what is published.

    Args:
        built: split -> counts by the names of `COUNTED`.
        published: the same, with those counts that somebody published; may lack splits.

    Returns:
        A line for each split without published counts, and one for each published count.
    """
    lines = []
    for split, counts in built.items():
        known = published.get(split)
        if not known:
            lines.append(f"{split}: {_words(counts, _shown(counts))}; nothing is published of it")
            continue
        for name, number in known.items():
            same = counts[name] == number
            verdict = "as published" if same else f"published: {number:,}"
            lines.append(f"{split}: {counts[name]:,} {name}; {verdict}")
        different = [name for name, number in known.items() if counts[name] != number]
        if different:
            lines.append(
                f"{split}: this is not the published split ({', '.join(different)} differ)"
            )
    return lines


def not_there(
    built: Mapping[str, Mapping[str, int]], published: Mapping[str, Mapping[str, int]]
) -> list[str]:
    """A line for each published split of which nothing was built; takes what `compare` does."""
    return [
        f"{split}: not there; published: {_words(known, list(known))}"
        for split, known in published.items()
        if split not in built
    ]


def _shown(counts: Mapping[str, int]) -> Sequence[str]:
    """The counts that say something of this split."""
    always = ("images", "refs", "expressions")
    return [name for name in COUNTED if name in always or (name == "groups" and counts[name])]


def _words(counts: Mapping[str, int], names: Sequence[str]) -> str:
    return ", ".join(f"{counts[name]:,} {name}" for name in names)
