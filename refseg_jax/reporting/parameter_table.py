"""Lists a model's parameters: a summary for the screen, and the whole table for a file.

The running averages of batch normalisation are no parameters: they are counted and listed apart.
"""

import math
from collections import Counter
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from clu import parameter_overview

_AVERAGES = "running averages"


def summary(shapes: Mapping[str, Any], statistics: Set[str] = frozenset()) -> str:
    """Text with the number of parameters of each tower and of its modules; towers sum to the total.

    A tower is the first part of a dotted path, a module the first two parts. A last line counts the
    running averages, where there are any.

    Args:
        shapes: dotted path -> anything with a `shape`.
        statistics: the paths that are running averages.
    """
    towers: Counter[str] = Counter()
    modules: dict[str, Counter[str]] = {}
    averages = 0
    for path, leaf in shapes.items():
        tower, module = path.split(".")[0], ".".join(path.split(".")[:2])
        size = math.prod(leaf.shape)
        if path in statistics:
            averages += size
            continue
        towers[tower] += size
        modules.setdefault(tower, Counter())[module] += size
    total = towers.total()
    rows = []
    for tower, size in towers.items():
        rows.append((tower, size))
        # The only module of a tower would repeat its row.
        if len(modules[tower]) > 1:
            rows += [(f"  {name}", count) for name, count in modules[tower].items()]
    rows.append(("total", total))
    names = [name for name, _ in rows]
    width = max(map(len, [*names, _AVERAGES] if averages else names))
    lines = [
        f"{name:<{width}}  {size:>13,}  {100 * size / max(total, 1):5.1f} %" for name, size in rows
    ]
    if averages:
        lines.append(f"{_AVERAGES:<{width}}  {averages:>13,}  not trained")
    return "\n".join(lines)


def write_table(shapes: Mapping[str, Any], statistics: Set[str], path: Path) -> None:
    """Writes a table with one row for each parameter: path, shape, dtype, size.

    The running averages follow in a table of their own, where there are any.

    Args:
        shapes: as in `summary`, with a `dtype`.
        statistics: as in `summary`.
        path: the file.
    """
    parameters = {name: leaf for name, leaf in shapes.items() if name not in statistics}
    averages = {name: leaf for name, leaf in shapes.items() if name in statistics}
    text = _table(parameters)
    if averages:
        heading = f"{_AVERAGES.capitalize()} of batch normalisation, which are not trained:"
        text += f"\n{heading}\n{_table(averages)}"
    path.write_text(text)


def _table(shapes: Mapping[str, Any]) -> str:
    table: Any = parameter_overview.get_parameter_overview(dict(shapes), include_stats=False)
    return f"{table}\n"
