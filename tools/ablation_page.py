"""The tables of an ablation: means, differences, and whether the seeds resolve them."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from tools.studies import Study, Table

#: Of a row: each seed's scores by metric, in the order of the seeds.
Scores = Sequence[Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A mean over seeds.

    Attributes:
        mean: of the scores, or of differences.
        error: its standard error (sample standard deviation / sqrt(n)).
    """

    mean: float
    error: float

    @classmethod
    def of(cls, scores: Sequence[float]) -> "Cell":
        """Mean and standard error.

        Raises:
            ValueError: fewer than two scores.
        """
        if len(scores) < 2:
            raise ValueError(f"a standard error needs two scores or more, there are {len(scores)}")
        return cls(statistics.fmean(scores), statistics.stdev(scores) / math.sqrt(len(scores)))

    @property
    def resolved(self) -> bool:
        """Of a difference: whether it is more than two of its standard errors."""
        return abs(self.mean) > 2.0 * self.error


def difference(scores: Sequence[float], base: Sequence[float], *, paired: bool) -> Cell:
    """The mean of `scores` less that of `base`.

    Args:
        scores, base: by seed.
        paired: whether both were read from the same trainings. Then a seed's two scores move
            together, and its difference is what scatters; else the variances of the means add up.
    """
    if paired:
        return Cell.of([ours - theirs for ours, theirs in zip(scores, base, strict=True)])
    ours, theirs = Cell.of(scores), Cell.of(base)
    return Cell(ours.mean - theirs.mean, math.hypot(ours.error, theirs.error))


def by_chance(freedom: int) -> float:
    """How probable a difference of over two standard errors is where there is none (Student's t).

    Args:
        freedom: degrees of freedom of the standard error, at least 1.

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    angle = math.atan(2.0 / math.sqrt(freedom))
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * k / (k + 1)
    inside = math.sin(angle) * total
    return 1.0 - (2.0 / math.pi * (angle + inside) if odd else inside)


def markdown(
    study: Study, scores: Sequence[Sequence[Scores]], seeds: Sequence[int], steps: int
) -> str:
    """The page.

    Args:
        study: what was run.
        scores: of each table each row's, by seed.
        seeds, steps: of the runs.
    """
    lines = [f"# {study.title}", "", *study.text, ""]
    for table, rows in zip(study.tables, scores, strict=True):
        if table.text:
            lines += [*table.text, ""]
        lines.append(f"| {table.heading} | " + " | ".join(study.metrics) + " |")
        lines.append("|---" * (len(study.metrics) + 1) + "|")
        for number, row in enumerate(table.rows):
            texts = [_text(table, number, rows, metric) for metric in study.metrics]
            lines.append(f"| {row.label} | " + " | ".join(texts) + " |")
        lines.append("")
    lines += [
        f"Held-out scenes, {steps} steps a run, seeds {', '.join(map(str, seeds))}: mean ± standard "
        f"error in percent, in brackets the difference to {_first(study)}; *unresolved* is a "
        "difference of at most two standard errors.",
        "",
        _caution(study, len(seeds)),
    ]
    return "\n".join(lines) + "\n"


def _text(table: Table, number: int, rows: Sequence[Scores], metric: str) -> str:
    found, base = ([one[metric] for one in rows[row]] for row in (number, 0))
    cell = Cell.of(found)
    text = f"{100 * cell.mean:.2f} ± {100 * cell.error:.2f}"
    if not number:
        return text
    less = difference(found, base, paired=_paired(table, number))
    unresolved = "" if less.resolved else ", unresolved"
    return f"{text} ({100 * less.mean:+.2f}{unresolved})"


def _paired(table: Table, number: int) -> bool:
    """Whether the row and the first one are of the same trainings."""
    return table.rows[number].variant == table.rows[0].variant


def _caution(study: Study, seeds: int) -> str:
    """What the brackets are worth: how many there are, and how many of them chance resolves."""
    told = [_paired(table, row) for table in study.tables for row in range(1, len(table.rows))]
    paired, apart = (len(study.metrics) * told.count(kind) for kind in (True, False))
    of_pairs, of_others = by_chance(seeds - 1), by_chance(2 * seeds - 2)
    parts = [
        f"p = {chance:.2f} in the {number} between rows of {kind}"
        for number, chance, kind in (
            (apart, of_others, "different trainings"),
            (paired, of_pairs, "the same trainings, whose error is that of the seeds' differences"),
        )
        if number
    ]
    text = (
        f"The page tells {paired + apart} differences. Where there is none, {seeds} seeds pass two "
        f"standard errors with {', '.join(parts)} (Student's t)"
    )
    expected = paired * of_pairs + apart * of_others
    return f"{text}. If nothing differed, about {expected:.0f} would be called resolved by chance."


def _first(study: Study) -> str:
    (first, *more) = study.tables
    return "the table's first row" if more else f"`{first.rows[0].label}`"
