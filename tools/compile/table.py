"""Figures as text: a column for each topology, a row for each figure."""

from collections.abc import Mapping, Sequence

from tools.compile.child import Found
from tools.compile.figures import Figures

_GIB = 2**30


def table(figures: Mapping[str, Figures]) -> str:
    """The figures of one function.

    Args:
        figures: name of the topology -> its figures.
    """
    columns = {name: _column(one) for name, one in figures.items()}
    labels = list(dict.fromkeys(label for column in columns.values() for label in column))
    width = max(map(len, labels))
    widths = [max(map(len, [name, *column.values()])) for name, column in columns.items()]
    lines = [" " * width + "".join(f"  {n:>{w}}" for n, w in zip(columns, widths, strict=True))]
    for label in labels:
        cells = (column.get(label, "") for column in columns.values())
        line = "".join(f"  {cell:>{w}}" for cell, w in zip(cells, widths, strict=True))
        lines.append(f"{label:<{width}}{line}".rstrip())
    return "\n".join(lines)


def title(one: Figures) -> str:
    """Function and shape of the rows."""
    images, pairs, tokens = one.shape
    return f"{one.name}: rows of {images} x {pairs} (images x expressions) and {tokens} tokens"


def _column(one: Figures) -> dict[str, str]:
    mesh = " x ".join(f"{axis} {size}" for axis, size in one.mesh.items() if size > 1)
    shards = one.mesh["data"] * one.mesh["fsdp"]
    cells = {
        "device": one.device,
        "devices": f"{one.devices} ({mesh})" if mesh else str(one.devices),
        "rows (a device)": f"{one.rows} ({one.rows / shards:g})" if one.field else str(one.rows),
        "fits": {True: "yes", False: "NO", None: "no known limit"}[one.fits],
        "state, GiB a device": f"{one.state / _GIB:.3f}",
        "temporaries, GiB": _number(one.temporaries, _GIB),
        "peak, GiB": _number(one.needed, _GIB),
        "arithmetic, TFLOP": _number(one.flops, 1e12),
        "memory traffic, GB": _number(one.traffic, 1e9),
        "with that on the chip": _number(one.accessed, 1e9) if one.accessed != one.traffic else "",
        "FLOP a byte": _ratio(one.flops, one.traffic),
        "arithmetic, ms": _number(one.arithmetic_seconds, 1e-3),
        "memory, ms": _number(one.memory_seconds, 1e-3),
        "share of peak at best": _share(one.arithmetic_seconds, one.step_seconds),
        "images/s at best": _number(one.images_per_second, 1, 1),
        "images/s a host": _number(one.images_per_second_a_host, 1, 1),
    }
    for kind, moved in one.moved.items():
        cells[f"{kind}, number and GB"] = f"{moved.count}  {moved.bytes / 1e9:.3f}"
    if one.endless:
        cells["loops counted once"] = str(one.endless)
    cells["compilation, s"] = f"{one.seconds:.0f}"
    return {label: cell for label, cell in cells.items() if cell}


def refusal(name: str, one: Figures, cures: Sequence[str]) -> str:
    """The line on a function that does not fit."""
    size = ""
    if one.needed is not None and one.available is not None:
        size = f" ({one.needed / _GIB:.1f} of {one.available / _GIB:.2f} GiB)"
    cure = f"; try {', '.join(cures)}" if cures else ""
    return f"--topology={name}: {one.name} of {one.rows} rows does not fit{size}{cure}"


def found_line(name: str, one: Figures, found: Found) -> str:
    """The line on a search for the largest batch."""
    tried = f"{found.compilations} compilations"
    if not found.rows:
        return f"{name}: {one.name}: no batch fits, not even {found.more} rows ({tried})"
    more = f", {found.more} do not" if found.more else ""
    return f"{name}: {one.name}: --{one.field}={found.rows} fits{more} ({tried})"


def _number(value: float | None, unit: float, digits: int = 3) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"


def _ratio(one: float | None, other: float | None) -> str:
    return f"{one / other:.0f}" if one is not None and other else ""


def _share(one: float | None, other: float | None) -> str:
    return f"{100 * one / other:.0f} %" if one is not None and other else ""
