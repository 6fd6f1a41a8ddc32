"""Which parameters a model has: a summary for the screen, and the whole table for a file."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clu import parameter_overview


def summary(shapes: Mapping[str, Any]) -> str:
    """Numbers of parameters by tower, and by the modules of each; the towers add up to the total.

    Args:
        shapes: dotted path -> what has a `shape`.
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
        # A tower of one module is told already.
        if len(modules[tower]) > 1:
            rows += [(f"  {name}", count) for name, count in modules[tower].items()]
    rows.append(("total", total))
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        f"{name:<{width}}  {size:>13,}  {100 * size / max(total, 1):5.1f} %" for name, size in rows
    )


def write_table(shapes: Mapping[str, Any], path: Path) -> None:
    """One row a parameter: path, shape, dtype, size."""
    table: Any = parameter_overview.get_parameter_overview(dict(shapes), include_stats=False)
    path.write_text(f"{table}\n")
