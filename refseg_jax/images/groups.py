"""Cuts a group of images into rows of N; the input pipeline and the predictor share this code.

A model of groups lets the images of a row ask each other, so that an answer depends on who shares the
row. The rows follow from the names of the images alone, never from the order in which they are given.
"""

from collections.abc import Sequence
from typing import NamedTuple


class GroupRow(NamedTuple):
    """A row of a group.

    Attributes:
        images: N indices of images, in the order of their names.
        counted: for each of them, whether its answer in this row counts. That of an image that fills up
            a row does not: it counts in another row, or at another place of this one.
    """

    images: tuple[int, ...]
    counted: tuple[bool, ...]


def group_rows(names: Sequence[str], size: int) -> list[GroupRow]:
    """Cuts a group into rows, in which each image counts once.

    Every row has N images. The last row of a group of more than N is its last N images: those that
    counted in the row before take part again. In a group of fewer than N, all images are repeated
    equally often, or some once more than others. GRSer's paper does not say how a group is cut or its
    last row filled; full rows look like those of training.

    Args:
        names: names of the images; of equal names, the one that is given first comes first.
        size: N, at least 1.

    Raises:
        ValueError: `size` is less than 1.
    """
    if size < 1:
        raise ValueError(f"rows of {size} images; give 1 or more")
    order = sorted(range(len(names)), key=lambda index: names[index])
    count = len(order)
    if 0 < count < size:
        places = [place * count // size for place in range(size)]
        new = [place == 0 or places[place] != places[place - 1] for place in range(size)]
        return [GroupRow(tuple(order[place] for place in places), tuple(new))]
    rows = []
    for start in range(0, count, size):
        first = min(start, count - size)
        counted = tuple(first + place >= start for place in range(size))
        rows.append(GroupRow(tuple(order[first : first + size]), counted))
    return rows
