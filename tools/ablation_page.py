"""Writes the page of an ablation: means over seeds, differences, and whether the seeds resolve them.

A page of a single seed judges its differences by the noise that its study states.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from tools.studies import Study, Table

#: The scores of a row by metric, one mapping per seed.
Scores = Sequence[Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A mean over seeds.

    Attributes:
        mean: mean of the scores, or of their differences.
        error: standard error of the mean (sample standard deviation / sqrt(n)).
    """

    mean: float
    error: float

    @classmethod
    def of(cls, scores: Sequence[float]) -> "Cell":
        """Mean and standard error of scores, one per seed.

        Raises:
            ValueError: there are fewer than two scores.
        """
        if len(scores) < 2:
            raise ValueError(f"a standard error needs two scores or more, there are {len(scores)}")
        return cls(statistics.fmean(scores), statistics.stdev(scores) / math.sqrt(len(scores)))

    @property
    def resolved(self) -> bool:
        """For a difference: whether it exceeds two of its standard errors."""
        return abs(self.mean) > 2.0 * self.error


def difference(scores: Sequence[float], base: Sequence[float], *, paired: bool) -> Cell:
    """The mean of `scores` minus that of `base`, with its standard error.

    Args:
        scores, base: one score per seed.
        paired: whether both come from the same trainings. If so, the two scores of a seed are
            correlated, and the error is that of the mean difference; else the variances of both means
            add up.
    """
    if paired:
        return Cell.of([ours - theirs for ours, theirs in zip(scores, base, strict=True)])
    ours, theirs = Cell.of(scores), Cell.of(base)
    return Cell(ours.mean - theirs.mean, math.hypot(ours.error, theirs.error))


def by_chance(freedom: int) -> float:
    """Probability that a difference exceeds two standard errors if the true one is zero (Student's t).

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
    study: Study,
    scores: Sequence[Sequence[Scores]],
    seeds: Sequence[int],
    steps: int,
    command: str,
) -> str:
    """The page as Markdown.

    Args:
        study: the study that was run.
        scores: the scores of each row of each table.
        seeds: seeds of the runs.
        steps: steps of each run.
        command: the command lines that make the page.
    """
    lines = [f"# {study.title}, {steps} steps", "", *study.text, "", *_reading(study, seeds), ""]
    lines += ["This page is written by", "", "```bash", command, "```", ""]
    for table, rows in zip(study.tables, scores, strict=True):
        if table.text:
            lines += [*table.text, ""]
        lines.append(f"| {table.heading} | " + " | ".join(study.metrics) + " |")
        lines.append("|---" * (len(study.metrics) + 1) + "|")
        for number, row in enumerate(table.rows):
            texts = [_text(table, number, rows, metric, study.noise) for metric in study.metrics]
            lines.append(f"| {row.label} | " + " | ".join(texts) + " |")
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def _reading(study: Study, seeds: Sequence[int]) -> list[str]:
    """Lines that explain the tables, and how many of their differences chance explains."""
    if len(seeds) == 1:
        least = 2 * math.hypot(study.noise, study.noise)
        return [
            f"Scores are percent on held-out scenes, of one training from seed {seeds[0]}. In brackets: "
            "the difference to the first row of the table, or ≈ where it is unresolved: at most "
            f"{100 * least:.1f} points. That is two standard errors if scores scatter over seeds by "
            f"{100 * study.noise:.1f} points, the most in `group_tokens` on the first version of Scenes."
        ]
    return [
        "Scores are percent on held-out scenes, as mean ± standard error over seeds "
        f"{', '.join(map(str, seeds))}. In brackets: the difference to the first row of the table, "
        "or ≈ where it is at most two of its standard errors. " + _caution(study, len(seeds))
    ]


def _text(table: Table, number: int, rows: Sequence[Scores], metric: str, noise: float) -> str:
    found, base = ([one[metric] for one in rows[row]] for row in (number, 0))
    if len(found) == 1:
        less = Cell(found[0] - base[0], math.hypot(noise, noise))
        text = f"{100 * found[0]:.2f}"
        return f"{text}{_bracket(less)}" if number else text
    cell = Cell.of(found)
    text = f"{100 * cell.mean:.2f} ± {100 * cell.error:.2f}"
    if not number:
        return text
    return text + _bracket(difference(found, base, paired=_paired(table, number)))


def _bracket(less: Cell) -> str:
    """A difference behind its score, or ≈ where it is unresolved."""
    return f" ({100 * less.mean:+.2f})" if less.resolved else " (≈)"


def _paired(table: Table, number: int) -> bool:
    """Whether the row and the first one come from the same trainings."""
    return table.rows[number].variant == table.rows[0].variant


def _caution(study: Study, seeds: int) -> str:
    """Sentence with the number of differences, and how many would be resolved by chance."""
    told = [_paired(table, row) for table in study.tables for row in range(1, len(table.rows))]
    paired, apart = (len(study.metrics) * told.count(kind) for kind in (True, False))
    of_pairs, of_others = by_chance(seeds - 1), by_chance(2 * seeds - 2)
    parts = [
        f"{chance:.2f} for each of the {number} between {kind}"
        for number, chance, kind in (
            (apart, of_others, "different trainings"),
            (paired, of_pairs, "rows of the same trainings"),
        )
        if number
    ]
    expected = paired * of_pairs + apart * of_others
    return (
        f"Chance alone would print about {expected:.0f} of the page's {paired + apart} differences as "
        f"numbers (Student's t: {', '.join(parts)})."
    )
