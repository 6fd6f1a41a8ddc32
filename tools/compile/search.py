"""Finds the largest batch that fits, in few compilations."""

from collections.abc import Callable
from typing import NamedTuple

#: Compilations of a search at most.
MOST = 5

#: Share of the memory that is filled by estimate; the rest is for what does not grow with the batch.
_FILLED = 0.97


class Tried(NamedTuple):
    """Result of a compilation.

    Attributes:
        fits: whether the memory suffices.
        needed, available: bytes, `None` if unknown.
    """

    fits: bool
    needed: float | None
    available: float | None


def largest_batch(
    attempt: Callable[[int], Tried], *, start: int, unit: int, memory: float
) -> tuple[int, dict[int, Tried]]:
    """Finds the most rows that fit.

    Two compilations give the memory that a row takes. The estimate that follows is compiled, and
    narrowed by its result.

    Args:
        attempt: compiles for a number of rows.
        start: rows of the first compilation.
        unit: rows are a multiple of it.
        memory: bytes of the device, where the compiler does not tell them.

    Returns:
        The most rows that were compiled and fit (0: none did), and rows -> result of all compilations.
    """
    tried: dict[int, Tried] = {}
    rows = start
    for _ in range(MOST):
        tried[rows] = attempt(rows)
        known = _next(tried, unit, memory)
        if known is None:
            break
        rows = known
    return max((rows for rows, one in tried.items() if one.fits), default=0), tried


def _next(tried: dict[int, Tried], unit: int, memory: float) -> int | None:
    """The rows to try next; `None` if the most are known."""
    least = max((rows for rows, one in tried.items() if one.fits), default=0)
    most = min((rows for rows, one in tried.items() if not one.fits), default=None)
    if most is not None and most - least <= unit:
        return None
    if len(tried) == 1:
        return 2 * least if least else _floor(most or unit, unit, 4)
    guess = _estimate(tried, memory)
    if guess is None:
        guess = 2 * least if most is None else (least + most) / 2
    rows = int(guess // unit) * unit
    rows = max(rows, least + unit)
    return rows if most is None else min(rows, most - unit)


def _estimate(tried: dict[int, Tried], memory: float) -> float | None:
    """The rows that fill the memory, on the line through the two results nearest to full."""
    known = {rows: one.needed for rows, one in tried.items() if one.needed is not None}
    limit = next((one.available for one in tried.values() if one.available), memory) * _FILLED
    nearest = sorted(known, key=lambda rows: abs(known[rows] - limit))[:2]
    if len(nearest) < 2:
        return None
    low, high = sorted(nearest)
    slope = (known[high] - known[low]) / (high - low)
    return low + (limit - known[low]) / slope if slope > 0 else None


def _floor(rows: int, unit: int, share: int) -> int:
    return max(unit, rows // share // unit * unit)
