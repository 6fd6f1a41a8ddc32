"""Divides the expressions of a split into rows of batches."""

import dataclasses
from typing import Literal, TypeAlias

import numpy as np

from input_pipeline.sources import ExpressionTable
from refseg_jax.batch import GRANULARITIES
from refseg_jax.naming import unknown

#: What a row is. `image`: an image, of which K expressions are drawn. `referent`: a referent, of which
#: one expression is drawn (as in CRIS). `expressions`: up to K expressions of an image, each expression
#: in one row. `group`: up to N images of a group, with the expression that they share.
Sampling: TypeAlias = Literal["image", "referent", "expressions", "group"]


@dataclasses.dataclass(frozen=True)
class RowTable:
    """Rows as slices of an ordered table of expressions.

    Attributes:
        record, position: i32 `[E]`, for each expression its record, and its index in that record.
        start, stop: i64 `[R]`, the slice of each row. Its entries are candidates to draw from
            (`image`, `referent`), the expressions of the row (`expressions`), or one entry for each
            image (`group`).
    """

    record: np.ndarray
    position: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def entries(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Records and positions of a row's entries, each i32 `[entries]`."""
        where = slice(self.start[row], self.stop[row])
        return self.record[where], self.position[where]


def make_rows(
    table: ExpressionTable,
    sampling: Sampling,
    granularities: tuple[str, ...],
    *,
    pairs: int,
    images: int,
) -> RowTable:
    """Makes the rows of a split; expressions of other granularities are in none.

    Args:
        table: all expressions of the split.
        sampling: what a row is.
        granularities: names out of `GRANULARITIES`.
        pairs: K, the longest row of `expressions`.
        images: N, the longest row of `group`.

    Raises:
        ValueError: the name of a sampling or of a granularity is unknown.
    """
    wanted = of_granularities(table, granularities)
    if sampling == "group":
        wanted &= table.group >= 0
        keys, longest = (table.group[wanted],), images
    elif sampling == "referent":
        keys, longest = (table.record[wanted], table.referent[wanted]), None
    elif sampling in ("image", "expressions"):
        keys = (table.record[wanted],)
        longest = pairs if sampling == "expressions" else None
    else:
        raise ValueError(
            unknown("sampling", sampling, ("image", "referent", "expressions", "group"))
        )
    record, position = table.record[wanted], table.position[wanted]
    order = np.lexsort((position, record, *reversed(keys)))
    changes = np.zeros(len(order), bool)
    for key in keys:
        ordered = key[order]
        changes[1:] |= ordered[1:] != ordered[:-1]
    changes[:1] = True
    starts = np.flatnonzero(changes)
    stops = np.append(starts[1:], len(order))
    if longest is not None:
        starts, stops = _cut(starts, stops, longest)
    return RowTable(record[order], position[order], starts, stops)


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
