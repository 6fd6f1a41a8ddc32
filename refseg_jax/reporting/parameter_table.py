"""Lists a model's parameters: a summary for the screen, and the whole table for a file."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clu import parameter_overview


def summary(shapes: Mapping[str, Any]) -> str:
    """Text with the number of parameters of each tower and of its modules; towers sum to the total.

    A tower is the first part of a dotted path, a module the first two parts.

    Args:
        shapes: dotted path -> anything with a `shape`.
    """
    towers: Counter[str] = Counter()
    modules: dict[str, Counter[str]] = {}
    for path, leaf in shapes.items():
        tower, module = path.split(".")[0], ".".join(path.split(".")[:2])
        size = math.prod(leaf.shape)
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
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        f"{name:<{width}}  {size:>13,}  {100 * size / max(total, 1):5.1f} %" for name, size in rows
    )


def write_table(shapes: Mapping[str, Any], path: Path) -> None:
    """Writes a table with one row for each parameter: path, shape, dtype, size."""
    table: Any = parameter_overview.get_parameter_overview(dict(shapes), include_stats=False)
    path.write_text(f"{table}\n")
