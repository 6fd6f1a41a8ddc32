"""What a compiled program moves between devices, and how much more its loops do than XLA counts."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

from refseg_jax.training.arithmetic import meetings
from tools.compile.hlo import Computation, Instruction, Program

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_WINDOW = re.compile(r"\bwindow=\{([^}]*)\}")
_LABELS = re.compile(r"\bdim_labels=(\w+)_(\w+)->(\w+)")
_CONTRACTED = re.compile(r"\blhs_contracting_dims=\{([\d,]*)\}")
_GROUPS = re.compile(r"\bfeature_group_count=(\d+)")

#: Instructions that move nothing.
_FREE = frozenset(
    {
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
        *("call", "after-all", "partition-id", "replica-id", "opt-barrier", "async-start"),
        *("async-done", "async-update", "copy-done", "slice-done", "domain"),
    }
)


@dataclasses.dataclass(frozen=True)
class Moved:
    """Collectives of one kind in a run of a program.

    Attributes:
        count: number of them.
        bytes: size of the whole arrays, as one device sees them: of an all-gather the gathered one, of a
            reduce-scatter the one that is added up.
    """

    count: int
    bytes: float


def collectives(program: Program) -> dict[str, Moved]:
    """Kind -> what it moves."""
    counts: dict[str, float] = collections.defaultdict(float)
    sizes: dict[str, float] = collections.defaultdict(float)
    # On a TPU, one that runs beside arithmetic is written out several times, with the same channel.
    channels: set[str] = set()
    for name, times in _all_runs(program).items():
        computation = program.computations[name]
        for instruction in computation.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            channel = _CHANNEL.search(instruction.attributes)
            if channel and channel[1] in channels:
                continue
            channels |= {channel[1]} if channel else set()
            size = sum(computation[operand].bytes for operand in instruction.operands)
            if kind == "all-gather":
                began = instruction.opcode.endswith("-start")
                size = instruction.bytes - (size if began else 0)
            if kind == "all-reduce" and "all-reduce-scatter" in name:
                # TPUs scatter in a fusion of an all-reduce and a slice.
                kind = "reduce-scatter"
            counts[kind] += times
            sizes[kind] += times * size
    return {kind: Moved(round(counts[kind]), sizes[kind]) for kind in COLLECTIVES if counts[kind]}


def loop_factors(program: Program) -> tuple[float, float]:
    """By how much arithmetic and memory traffic exceed a single pass through the text.

    XLA's cost analysis counts the body of a loop once, however often it runs. The true figures are
    XLA's times these factors, which are 1 without loops.
    """
    flops, traffic = [0.0, 0.0], [0.0, 0.0]
    once = dict.fromkeys(program.runs, 1.0)
    for place, runs in enumerate((once, program.runs)):
        for name, times in _all_runs(program, runs).items():
            flops[place] += times * products(program.computations[name])
        for name, times in runs.items():
            traffic[place] += times * _moved(program, program.computations[name])
    return flops[1] / flops[0] if flops[0] else 1.0, traffic[1] / traffic[0] if traffic[0] else 1.0


def memory_traffic(program: Program) -> float:
    """Bytes between a device's memory and its chip.

    XLA's own count has what moves on the chip as well, which a TPU does many times faster: most arrays
    there are first copied to the chip, which is counted as a copy's reads and writes and once more as
    the reads of their users.
    """
    return sum(
        times * _moved(program, program.computations[name], outside=True)
        for name, times in program.runs.items()
    )


def _all_runs(program: Program, runs: dict[str, float] | None = None) -> dict[str, float]:
    """How often each computation runs, those inside fusions included."""
    found: dict[str, float] = collections.defaultdict(float)

    def visit(name: str, times: float) -> None:
        found[name] += times
        for instruction in program.computations[name].values():
            for inner in program.inner(instruction):
                if inner not in sequences:
                    visit(inner, times)

    sequences = program.runs if runs is None else runs
    for name, times in sequences.items():
        visit(name, times)
    return dict(found)


def products(computation: Computation) -> float:
    """Arithmetic of the matrix products and convolutions of a computation, in FLOP."""
    total = 0.0
    for instruction in computation.values():
        if instruction.opcode == "dot":
            total += _dot(instruction, computation)
        elif instruction.opcode == "convolution":
            total += _convolution(instruction, computation)
    return total


def _dot(instruction: Instruction, computation: Computation) -> float:
    (left,) = computation[instruction.operands[0]].arrays
    dims = _CONTRACTED.search(instruction.attributes)
    contracted = [left.shape[int(n)] for n in dims[1].split(",") if n] if dims else []
    return 2.0 * instruction.arrays[0].size * math.prod(contracted)


def _convolution(instruction: Instruction, computation: Computation) -> float:
    (result,) = instruction.arrays
    left, right = (computation[name].arrays[0] for name in instruction.operands[:2])
    labels = _LABELS.search(instruction.attributes)
    assert labels is not None
    seen, kernel, out = labels.groups()
    groups = _GROUPS.search(instruction.attributes)
    fields = _WINDOW.search(instruction.attributes)
    window = dict(f.split("=") for f in fields[1].split()) if fields else {}
    total = 2.0 * left.shape[seen.index("b")] * result.shape[out.index("f")]
    total *= left.shape[seen.index("f")] / (int(groups[1]) if groups else 1)
    for axis, label in enumerate(sorted(c for c in seen if c.isdigit())):
        total *= meetings(
            left.shape[seen.index(label)],
            right.shape[kernel.index(label)],
            result.shape[out.index(label)],
            stride=_field(window, "stride", axis, 1),
            low=_field(window, "pad", axis, 0),
            holes=_field(window, "lhs_dilate", axis, 1),
            spread=_field(window, "rhs_dilate", axis, 1),
        )
    return total


def _field(window: dict[str, str], name: str, axis: int, default: int) -> int:
    if name not in window:
        return default
    # Of a padding such as 1_1x0_2, the low one.
    return int(window[name].split("x")[axis].split("_")[0])


def _moved(program: Program, computation: Computation, outside: bool = False) -> float:
    """Bytes that the instructions of a computation read and write; `outside`: without those on chip."""
    total = 0.0
    for instruction in computation.values():
        if instruction.opcode not in _FREE:
            total += sum(_accesses(program, computation, instruction, outside))
    return total


def _size(instruction: Instruction, outside: bool) -> float:
    return instruction.outside if outside else instruction.bytes


def _accesses(
    program: Program, computation: Computation, instruction: Instruction, outside: bool
) -> Iterator[float]:
    """Bytes of the result and of each operand, of which slices touch a part only."""
    if instruction.opcode == "fusion":
        (name,) = program.inner(instruction)
        yield from _fused(program.computations[name], outside)
        return
    operands = [computation[name] for name in instruction.operands]
    if instruction.opcode in ("copy-start", "slice-start"):
        # Source and destination are both in the result; what moves has the size of the smaller.
        ends = [array for array in instruction.arrays if array.shape]
        part = min((array.bytes for array in ends), default=0.0)
        yield from (part for a in ends if not (outside and a.on_chip))
    elif instruction.opcode in ("dynamic-slice", "slice", "gather"):
        yield _size(instruction, outside)
        yield instruction.bytes if _size(operands[0], outside) else 0.0
    elif instruction.opcode in ("dynamic-update-slice", "scatter"):
        yield 2 * sum(_size(operand, outside) for operand in operands[1:])
    else:
        yield from (_size(one, outside) for one in (instruction, *operands))


def _fused(body: Computation, outside: bool) -> Iterator[float]:
    users: dict[str, list[Instruction]] = collections.defaultdict(list)
    for instruction in body.values():
        for operand in instruction.operands:
            users[operand].append(instruction)
    for name, instruction in body.items():
        if instruction.opcode == "parameter":
            yield min(
                _size(instruction, outside),
                sum(_read(user, name, body, users) for user in users[name]),
            )
        if instruction.root:
            results = [instruction]
            if instruction.opcode == "tuple":
                results = [body[operand] for operand in instruction.operands]
            yield sum(min(_size(result, outside), _written(result, body)) for result in results)


def _read(
    user: Instruction, name: str, body: Computation, users: dict[str, list[Instruction]]
) -> float:
    """Bytes of an array that one of its users reads."""
    if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
        return user.bytes
    if user.opcode == "dynamic-update-slice" and user.operands[0] == name:
        return 0.0
    if user.opcode == "bitcast":
        return sum(_read(next_user, user.name, body, users) for next_user in users[user.name])
    return body[name].bytes


def _written(result: Instruction, body: Computation) -> float:
    while result.opcode == "bitcast":
        result = body[result.operands[0]]
    if result.opcode == "dynamic-update-slice":
        return body[result.operands[1]].bytes
    return result.bytes
