"""What a file of torch describes: tensors as views of storages, numpy's arrays, modules, state dicts."""

import dataclasses
import math
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from refseg_jax.errors import UserError
from refseg_jax.unpickling import numbers_of

#: What to do about a file that is refused.
CURE = (
    "use the original file, or save its state dict alone, e.g. "
    "torch.save(torch.load(FILE)['model'], OTHER)"
)
#: What to do about a file that is damaged.
AGAIN = "download or copy the file again"

#: Bound on the number of entries: no model has as many, but a small pickle can describe more.
_MOST_ENTRIES = 100_000
_DEEPEST = 50
_LONGEST_NAME = 300


@dataclasses.dataclass(frozen=True)
class Storage:
    """Numbers that tensors are views of.

    Attributes:
        key: name of the storage in the file.
        dtype: type of the numbers.
        count: how many there are.
        data: their bytes, if the pickle itself holds them.
    """

    key: str
    dtype: np.dtype
    count: int
    data: memoryview | None = None

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.count * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides are in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        """The type of its numbers."""
        return self.storage.dtype

    def misfit(self, size: int) -> str | None:
        """The reason why the tensor does not fit a storage of `size` bytes; `None` if it does."""
        if size != self.storage.size:
            return "has data of another size than it says"
        # With strides of 0, one number can claim any shape.
        if math.prod(self.shape) > self.storage.count:
            return "has more numbers than its data"
        steps = zip(self.shape, self.strides, strict=True)
        end = self.offset + sum((count - 1) * step for count, step in steps) + 1
        if math.prod(self.shape) and end * self.dtype.itemsize > size:
            return "reaches beyond its data"
        return None

    def of(self, data: bytes | memoryview) -> np.ndarray:
        """The tensor as a read-only view of the bytes of its storage, which it fits."""
        flat = np.frombuffer(data, self.dtype)[self.offset :]
        strides = [step * self.dtype.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)


class Numbers:
    """A numpy array, which the pickle itself holds."""

    def __init__(self, values: np.ndarray | None = None) -> None:
        self.values = np.zeros(0) if values is None else values

    def fill(self, state: Any) -> None:
        """Takes the state of a `numpy.ndarray`."""
        _, shape, kind, fortran, data = state
        self.values = numbers_of(shape, kind, data, fortran=fortran)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        """The type of its numbers, in this machine's byte order."""
        return self.values.dtype.newbyteorder("=")

    def read(self) -> np.ndarray:
        """The array in this machine's byte order, read-only."""
        found = self.values.astype(self.dtype, copy=False)
        found.flags.writeable = False
        return found


class Settings:
    """An `argparse.Namespace`: what a training was called with, which nobody reads."""


class Module:
    """A TorchScript module, reduced to its attributes."""

    def __init__(self) -> None:
        self.attributes: dict[Any, Any] = {}


def entries(
    made: Any, name: str, beside: Collection[str] = ()
) -> Iterator[tuple[str, Tensor | Numbers]]:
    """The names and arrays of the state dict in the object that a pickle describes.

    Args:
        made: the object.
        name: of the file, for messages.
        beside: keys of further state dicts beside it, whose entries have the key and a dot before
            their names.

    Raises:
        UserError: there is no state dict, or there are several.
    """
    made = _state_dict(made, name, beside)
    seen = 0
    waiting = [("", made, 0)]
    while waiting:
        prefix, value, depth = waiting.pop()
        inner = value.attributes if isinstance(value, Module) else value
        found = inner if isinstance(inner, dict) else {}
        seen += 1 + len(found)
        # A module may contain itself, or be contained in very many others.
        if seen > _MOST_ENTRIES or depth > _DEEPEST:
            raise UserError(f"{name}: refused, its modules have no end; {CURE}")
        if isinstance(value, Tensor | Numbers):
            yield prefix, value
        for key, one in reversed(found.items()):
            if isinstance(key, str) and isinstance(one, Module | Tensor | Numbers):
                if len(prefix) + len(key) >= _LONGEST_NAME:
                    raise UserError(f"{name}: an entry's name is no name: {key[:60]!r}; {AGAIN}")
                waiting.append((f"{prefix}.{key}" if prefix else key, one, depth + 1))


def _state_dict(made: Any, name: str, beside: Collection[str]) -> Any:
    """The state dict in an object: the object itself, or the one dict of weights in it.

    A training checkpoint holds the weights beside other things, among them arrays of numpy, so that
    these count as weights only where there is no tensor.
    """
    if _has(made, Tensor):
        return made
    # One dict may be the value of very many keys, so each dict is looked at only once.
    values = {id(value): value for value in made.values()} if isinstance(made, dict) else {}
    for kind in (Tensor, Numbers):
        full = {number for number, value in values.items() if _has(value, kind)}
        if not full:
            continue
        inner = [key for key, value in made.items() if isinstance(key, str) and id(value) in full]
        further = [key for key in inner if key in beside and len(inner) > 1]
        inner = [key for key in inner if key not in further]
        if len(inner) > 1:
            raise UserError(f"{name}: several state dicts: {', '.join(inner)[:200]!r}; {CURE}")
        if inner:
            joined = {f"{key}.{entry}": one for key in further for entry, one in made[key].items()}
            return {**made[inner[0]], **joined} if joined else made[inner[0]]
    if not _has(made, Numbers):
        raise UserError(f"{name}: it holds no weights; name a file of a model's state dict")
    return made


def _has(value: Any, kind: type) -> bool:
    if isinstance(value, Module):
        return kind is Tensor
    return isinstance(value, dict) and any(isinstance(v, kind) for v in value.values())
