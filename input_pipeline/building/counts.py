"""Counts the content of records, and compares the counts with the published ones."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from input_pipeline.facts.published import COUNTED
from input_pipeline.schema import Record

#: File beside the records with the counts and the problems of a build.
REPORT = "build_report.txt"


@dataclasses.dataclass
class Tally:
    """Running counts of a split; the tallies of its parts can be merged.

    Attributes:
        counts: counts by the names of `COUNTED`, without `groups`.
        groups: names of the groups.
    """

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
        """The counts by the names of `COUNTED`, in their order."""
        return {name: self.counts[name] for name in COUNTED[:-1]} | {"groups": len(self.groups)}


def compare(
    built: Mapping[str, Mapping[str, int]], published: Mapping[str, Mapping[str, int]]
) -> list[str]:
    """Compares the counts of a build with the published ones.

    Args:
        built: split -> counts by the names of `COUNTED`.
        published: split -> published counts; splits and counts that nobody published are missing.

    Returns:
        Lines of the report: one for each split without published counts, one for each published count,
        and one for each split that differs from the published one.
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
    """A line for each published split that was not built; the arguments are those of `compare`."""
    return [
        f"{split}: not there; published: {_words(known, list(known))}"
        for split, known in published.items()
        if split not in built
    ]


def _shown(counts: Mapping[str, int]) -> Sequence[str]:
    """Names of the counts to print: the basic ones, and `groups` if there are any."""
    always = ("images", "refs", "expressions")
    return [name for name in COUNTED if name in always or (name == "groups" and counts[name])]


def _words(counts: Mapping[str, int], names: Sequence[str]) -> str:
    return ", ".join(f"{counts[name]:,} {name}" for name in names)
