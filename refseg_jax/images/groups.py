"""Cuts a group of images into rows of up to N, for evaluations and predictions alike.

A model of groups lets the images of a row ask each other, so that an answer depends on who shares the
row. The rows follow from the names of the images alone, never from the order in which they are given.
An evaluation names an image by its `file_name`, a prediction by its path: what is common to all paths
changes no order.
"""

from collections.abc import Sequence
from typing import NamedTuple


class GroupRow(NamedTuple):
    """A row of a group.

    Attributes:
        images: indices of up to N images, in the order of their names.
        reused: how many of them, the first ones, have their answers in the row before.
    """

    images: tuple[int, ...]
    reused: int


def group_rows(names: Sequence[str], size: int) -> list[GroupRow]:
    """Cuts a group into rows, in which each image has one answer.

    The last row of a group of more than N is its last N images: some of the row before take part again.
    A group of fewer than N is one short row. GRSer's paper does not say how a group is cut or its last
    row filled.

    Args:
        names: names of the images; of equal names, the one that is given first comes first.
        size: N, at least 1.

    Raises:
        ValueError: `size` is less than 1.
    """
    if size < 1:
        raise ValueError(f"rows of {size} images; give 1 or more")
    order = sorted(range(len(names)), key=lambda index: names[index])
    rows = []
    for start in range(0, len(order), size):
        first = max(0, min(start, len(order) - size))
        rows.append(GroupRow(tuple(order[first : first + size]), start - first))
    return rows
