"""Divides the expressions of a split into rows of batches."""

import dataclasses
import fractions
import math
from typing import Literal, TypeAlias

import numpy as np

from input_pipeline.sources import DAMAGED, ExpressionTable
from refseg_jax.batch import GRANULARITIES
from refseg_jax.images.groups import group_rows
from refseg_jax.naming import unknown

#: What a row is. `image`: an image, of which K expressions are drawn. `referent`: a referent, of which
#: one expression is drawn (as in CRIS). `expressions`: up to K expressions of an image, each expression
#: in one row. `group`: up to N images of a group, with the expression that they share. `text`: the same,
#: where all images that are asked for the same text are a group.
Sampling: TypeAlias = Literal["image", "referent", "expressions", "group", "text"]

#: The samplings whose rows are groups of images.
GROUPED = ("group", "text")


@dataclasses.dataclass(frozen=True)
class DrawImages:
    """Draws images of a group to train on, of which a share has nothing that matches.

    GRSer trains on positives and negatives 1 : 1 (section 3.4). So that this holds for every group that
    has both, no image is drawn beyond what the share allows, and rows of small groups are padded. If the
    share of the drawn images is no whole number, it is rounded up or down at random, so that it holds on
    average. A group that has only one of the two gives what it has.

    Attributes:
        images: N, the most images that are drawn.
        negatives: share of images without a target, from 0 to below 1.
    """

    images: int
    negatives: float

    def number(self, positives: int, negatives: int) -> int:
        """How many of a group's images the share allows to draw, however large N is.

        Args:
            positives: images of the group with a target.
            negatives: images of the group without one.
        """
        if not positives or not negatives:
            return positives + negatives
        share = self._share
        most = math.floor(min(positives / (1 - share), negatives / share))
        # Both roundings of the share must be possible.
        while math.ceil(most * share) > negatives or most - math.floor(most * share) > positives:
            most -= 1
        return most

    def __call__(self, present: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Indices of the drawn images in rising order, i64 `[up to N]`.

        Args:
            present: bool `[G]`, whether each image of the group has a target.
            rng: source of randomness.
        """
        positives, negatives = np.flatnonzero(present), np.flatnonzero(~present)
        count = min(self.number(len(positives), len(negatives)), self.images)
        if not len(positives) or not len(negatives):
            return np.sort(rng.permutation(len(present))[:count])
        exact = count * self._share
        absent = math.floor(exact)
        absent += int(rng.random() < exact - absent)
        drawn = (rng.permutation(positives)[: count - absent], rng.permutation(negatives)[:absent])
        return np.sort(np.concatenate(drawn))

    @property
    def _share(self) -> fractions.Fraction:
        return fractions.Fraction(repr(self.negatives))


@dataclasses.dataclass(frozen=True)
class RowTable:
    """Rows as slices of an ordered table of expressions.

    Attributes:
        record, position: i32 `[E]`, for each expression its record, and its index in that record.
        start, stop: i64 `[R]`, the slice of each row. Its entries are candidates to draw from
            (`image`, `referent`, and groups with `draw`), the expressions of the row (`expressions`), or
            one entry for each image (groups): of several expressions with which a group asks an image
            for the same text, the first that has a target, or the first.
        present: bool `[E]`, whether the expression has a target.
        reused: i64 `[R]`, how many of a row's first entries the row before has as well, see `make_rows`.
        draw: draws the entries of a row from its slice, or `None`: all are taken.
    """

    record: np.ndarray
    position: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    present: np.ndarray
    reused: np.ndarray
    draw: DrawImages | None = None

    def __len__(self) -> int:
        return len(self.start)

    def entries(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Records and positions of all entries of a row's slice, each i32 `[entries]`."""
        where = slice(self.start[row], self.stop[row])
        return self.record[where], self.position[where]

    def drawn(self, row: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Records and positions of the entries that `draw` takes, or of all without it."""
        records, positions = self.entries(row)
        if self.draw is None:
            return records, positions
        kept = self.draw(self.present[self.start[row] : self.stop[row]], rng)
        return records[kept], positions[kept]


def make_rows(
    table: ExpressionTable,
    sampling: Sampling,
    granularities: tuple[str, ...],
    *,
    pairs: int,
    images: int,
) -> RowTable:
    """Makes the rows of a split; expressions of other granularities are in none.

    Groups are cut as `refseg_jax.images.groups.group_rows` does, by the names of their images' files;
    images of one name are ordered by their ids.

    Args:
        table: all expressions of the split.
        sampling: what a row is.
        granularities: names out of `GRANULARITIES`.
        pairs: K, the longest row of `expressions`.
        images: N, the longest row of groups.

    Raises:
        ValueError: the name of a sampling or of a granularity is unknown.
    """
    rows = _slices(table, sampling, granularities)
    if sampling == "expressions":
        start, stop = _cut(rows.start, rows.stop, pairs)
        return dataclasses.replace(rows, start=start, stop=stop, reused=np.zeros_like(start))
    if sampling in GROUPED:
        names = [name.decode() for name in table.name[rows.record].tolist()]
        pieces = [
            (start + row.images[0], start + row.images[-1] + 1, row.reused)
            for start, stop in zip(rows.start.tolist(), rows.stop.tolist(), strict=True)
            for row in group_rows(names[start:stop], images)
        ]
        start, stop, reused = np.array(pieces, np.int64).reshape(-1, 3).T
        return dataclasses.replace(rows, start=start, stop=stop, reused=reused)
    return rows


def draw_rows(
    table: ExpressionTable,
    sampling: Sampling,
    granularities: tuple[str, ...],
    draw: DrawImages,
) -> RowTable:
    """Makes rows of groups to train on, whose images are drawn anew each time.

    A group has as many rows as it takes to hold, once each, the images that its share of negatives
    allows. (The paper does not say how groups of more than N images are trained on.) For `text`, an
    expression that is asked of a single image makes no group.

    Args:
        table: all expressions of the split.
        sampling: out of `GROUPED`.
        granularities: names out of `GRANULARITIES`.
        draw: draws the images.

    Raises:
        ValueError: the name of a granularity is unknown.
    """
    rows = _slices(table, sampling, granularities)
    seen = np.append(0, np.cumsum(rows.present))
    positives = seen[rows.stop] - seen[rows.start]
    negatives = rows.stop - rows.start - positives
    often = np.array(
        [
            -(-draw.number(*counts) // draw.images) if sampling == "group" or sum(counts) > 1 else 0
            for counts in zip(positives.tolist(), negatives.tolist(), strict=True)
        ],
        np.int64,
    )
    start, stop = np.repeat(rows.start, often), np.repeat(rows.stop, often)
    return dataclasses.replace(rows, start=start, stop=stop, reused=np.zeros_like(start), draw=draw)


def _slices(table: ExpressionTable, sampling: Sampling, granularities: tuple[str, ...]) -> RowTable:
    """One row for each image, referent or group."""
    wanted = of_granularities(table, granularities)
    keys: tuple[np.ndarray, ...] = (table.record,)
    within: tuple[np.ndarray, ...] = (table.position, table.record)
    if sampling in GROUPED:
        key = table.group if sampling == "group" else table.text
        # A record that cannot be read is a row of its own, which is met and quarantined.
        damaged = table.position == DAMAGED
        key = np.where(damaged, key.max(initial=-1) + 1 + table.record, key)
        keys, wanted = (key,), wanted & (key >= 0)
        # So that it does not matter in which order a dataset has its images.
        place = np.empty(len(table.name), np.int64)
        place[np.lexsort((table.image, table.name))] = np.arange(len(place))
        # The entry of an image with several is one with a target, so that `present` is that of all.
        within = (table.position, ~table.present, place[table.record])
    elif sampling == "referent":
        keys = (table.record, table.referent)
    elif sampling not in ("image", "expressions"):
        known = ("image", "referent", "expressions", *GROUPED)
        raise ValueError(unknown("sampling", sampling, known))
    order = np.lexsort((*within, *reversed(keys)))
    order = order[wanted[order]]
    if sampling in GROUPED:
        order = order[_changes(order, (*keys, table.record))]
    starts = np.flatnonzero(_changes(order, keys))
    stops = np.append(starts, len(order))[1:]
    columns = (table.record[order], table.position[order])
    return RowTable(*columns, starts, stops, table.present[order], np.zeros_like(starts))


def _changes(order: np.ndarray, keys: tuple[np.ndarray, ...]) -> np.ndarray:
    """Where, in this order, a key differs from that of the place before; true at the first place."""
    found = np.zeros(len(order), bool)
    for key in keys:
        ordered = key[order]
        found[1:] |= ordered[1:] != ordered[:-1]
    found[:1] = True
    return found


def of_granularities(table: ExpressionTable, granularities: tuple[str, ...]) -> np.ndarray:
    """Which expressions of a table have one of some granularities, bool `[E]`.

    Raises:
        ValueError: the name of a granularity is unknown.
    """
    for name in granularities:
        if name not in GRANULARITIES:
            raise ValueError(unknown("granularity", name, GRANULARITIES))
    return np.isin(table.granularity, [GRANULARITIES.index(name) for name in granularities])


def _cut(starts: np.ndarray, stops: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts slices into pieces of at most `longest`."""
    pieces = -(-(stops - starts) // longest)
    row = np.repeat(np.arange(len(starts)), pieces)
    first = np.cumsum(pieces) - pieces
    begin = starts[row] + longest * (np.arange(len(row)) - first[row])
    return begin, np.minimum(begin + longest, stops[row])
