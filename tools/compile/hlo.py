"""Reads the text of a compiled program: its computations, its instructions, and how often each runs.

The text is what XLA prints (`jax.stages.Compiled.as_text`), with a line for each instruction:

    %name = f32[8,128]{1,0} opcode(%operand, ...), attribute=value, ...
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

_ARRAY = re.compile(r"\b(pred|(?:bf|f|s|u|c)\d\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
#: Memory spaces of a TPU's chip; that of the host is 5.
_ON_CHIP = re.compile(r"S\([1-4]\)")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation|branch_computations"
    r"|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')

#: Instructions whose `to_apply` or `calls` runs once; those of all others describe one instruction.
_CALLS = ("call", "while", "conditional", "async-start")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a program.

    Attributes:
        kind: type of its elements, e.g. `bf16`.
        shape: its sizes.
        on_chip: whether it lies in a memory of the chip instead of the device's; XLA writes
            `S(1)` into its layout.
    """

    kind: str
    shape: tuple[int, ...]
    on_chip: bool = False

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> float:
        """Memory that the elements take, without padding."""
        if self.kind == "pred":
            return self.size
        (bits,) = re.findall(r"^\D+(\d+)", self.kind)
        return self.size * int(bits) / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation.

    Attributes:
        name: unique in its computation.
        opcode: what it does, e.g. `fusion`.
        arrays: the result; several arrays are a tuple.
        operands: names of instructions of the same computation.
        attributes: the rest of the line.
        literal: what stands in the parentheses, e.g. the value of a constant.
        root: whether it is the result of its computation.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    literal: str
    root: bool

    @property
    def bytes(self) -> float:
        """Memory of the result."""
        return sum(array.bytes for array in self.arrays)

    @property
    def outside(self) -> float:
        """Memory of the result that is not on the chip."""
        return sum(array.bytes for array in self.arrays if not array.on_chip)

    @functools.cached_property
    def called(self) -> dict[str, tuple[str, ...]]:
        """Attribute -> computations that it names."""
        found: dict[str, tuple[str, ...]] = {}
        for attribute, names in _CALLED.findall(self.attributes):
            found[attribute] = tuple(re.findall(r"[\w.\-]+", names))
        return found


#: Name -> instruction, in the order of the text.
Computation = Mapping[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        computations: by name.
        entry: name of the one that runs.
    """

    computations: Mapping[str, Computation]
    entry: str

    @functools.cached_property
    def runs(self) -> dict[str, float]:
        """How often each computation runs that is a sequence of instructions, as loop bodies are."""
        runs: dict[str, float] = collections.defaultdict(float)

        def visit(name: str, times: float) -> None:
            runs[name] += times
            for instruction in self.computations[name].values():
                if instruction.opcode in _CALLS:
                    trips = self._trips(instruction) if instruction.opcode == "while" else 1
                    for inner in self.inner(instruction):
                        visit(inner, times * (trips or 1))

        visit(self.entry, 1.0)
        return dict(runs)

    @property
    def endless(self) -> int:
        """The number of loops whose length the text does not tell; they are taken to run once."""
        loops = (i for c in self.runs for i in self.computations[c].values() if i.opcode == "while")
        return sum(self._trips(loop) is None for loop in loops)

    def inner(self, instruction: Instruction) -> Iterator[str]:
        """The computations that an instruction names."""
        for names in instruction.called.values():
            yield from (name for name in names if name in self.computations)

    def _trips(self, loop: Instruction) -> int | None:
        """How often a loop runs: as XLA says, else by its condition `number < constant`, from 0 on."""
        if known := _TRIPS.search(loop.attributes):
            return int(known[1])
        (name,) = loop.called["condition"]
        found = list(self.computations[name].values())
        for instruction in found[:]:
            for inner in self.inner(instruction):
                found += self.computations[inner].values()
        limits = {i.literal for i in found if i.opcode == "constant" and _counts(i)}
        less = [i for i in found if i.opcode == "compare" and "direction=LT" in i.attributes]
        return int(limits.pop()) if len(limits) == len(less) == 1 else None


def _counts(constant: Instruction) -> bool:
    return constant.literal.isdigit() and all(not a.shape for a in constant.arrays)


def read(text: str) -> Program:
    """Reads the text of a program."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (named := _NAME.match(line)):
            current[named[2]] = _instruction(named[2], bool(named[1]), line[named.end() :])
    return Program(computations, entry)


def _instruction(name: str, root: bool, text: str) -> Instruction:
    end = _closed(text, 0) if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    start = rest.index("(")
    stop = _closed(rest, start)
    inside = rest[start + 1 : stop - 1]
    return Instruction(
        name=name,
        opcode=rest[:start],
        arrays=arrays_of(shape),
        operands=tuple(_OPERAND.findall(inside)),
        attributes=rest[stop:],
        literal=inside,
        root=root,
    )


def arrays_of(text: str) -> tuple[Array, ...]:
    """The arrays of a shape such as `(f32[8,128]{1,0}, s32[])`."""
    return tuple(
        Array(
            kind,
            tuple(int(n.removeprefix("<=")) for n in shape.split(",") if n),
            bool(_ON_CHIP.search(layout)),
        )
        for kind, shape, layout in _ARRAY.findall(text)
    )


def _closed(text: str, start: int) -> int:
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "(":
            depth += 1
        elif text[place] == ")":
            depth -= 1
            if not depth:
                return place + 1
    return len(text)
