"""Reads torch's files without torch, and without running code from them.

Two kinds of zip archives are supported: those of `torch.save` (a state dict, or a dict that contains
one) and TorchScript (in which OpenAI published CLIP). Both store the structure in `data.pkl` and each
storage as a member of its own, uncompressed. Names in the pickle become inert marks, a few of which
build descriptions of tensors; no function is ever looked up by name.
"""

import dataclasses
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from refseg_jax.errors import UserError
from refseg_jax.unpickling import (
    PLAIN,
    RefusedError,
    StrictUnpickler,
    opcodes,
    run,
)

_CURE = (
    "use the original file, or save its state dict alone, e.g. "
    "torch.save(torch.load(FILE)['model'], OTHER)"
)
_AGAIN = "download or copy the file again"

#: Bound on the number of entries: no model has as many, but a small pickle can describe more.
_MOST_ENTRIES = 100_000
_DEEPEST = 50
_MOST_PICKLE_BYTES = 2**24
_LONGEST_NAME = 300

_STORAGES: Mapping[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class TorchFile:
    """An opened archive, an implementation of `refseg_jax.weights.loader.Weights`.

    Entries have the names of torch's `state_dict()`.
    """

    def __init__(self, path: Path):
        """Reads the structure, but no arrays.

        Raises:
            UserError: the file is missing, damaged, of another kind, or contains more than tensors.
        """
        self.name = str(path)
        self._archive = _open(path)
        members = [m for m in self._archive.namelist() if m.endswith("/data.pkl")]
        if len(members) != 1:
            raise UserError(
                f"{path}: a zip archive, but none of torch.save or TorchScript (no data.pkl); name "
                "the weight file itself"
            )
        self._root = members[0].removesuffix("data.pkl")
        if f"{self._root}byteorder" in self._archive.namelist():
            order = self._bytes(f"{self._root}byteorder", 16)
            if order != b"little":
                raise UserError(
                    f"{path}: written on a {order!r}-endian machine; save it on another"
                )
        data = self._bytes(members[0], _MOST_PICKLE_BYTES)
        made = run(_TorchUnpickler(data), name=self.name, cure=_CURE)
        self._tensors = dict(_entries(made, self.name))
        for entry, tensor in self._tensors.items():
            if trouble := self._misfit(tensor):
                raise UserError(f"{path}: entry {entry!r} {trouble}; {_AGAIN}")
        self.shapes: Mapping[str, jax.ShapeDtypeStruct] = {
            entry: jax.ShapeDtypeStruct(tensor.shape, tensor.storage.dtype)
            for entry, tensor in self._tensors.items()
        }
        self._last: tuple[str, bytes] = "", b""

    def read(self, entry: str) -> np.ndarray:
        """Reads the array of an entry; the array is read-only.

        Raises:
            UserError: the checksum of its data is wrong, or the data cannot be read.
        """
        tensor = self._tensors[entry]
        storage = tensor.storage
        member = self._member(storage)
        if self._last[0] != member:  # Consecutive entries may be parts of one storage.
            self._last = member, self._bytes(member, storage.size)
        flat = np.frombuffer(self._last[1], storage.dtype)[tensor.offset :]
        strides = [step * storage.dtype.itemsize for step in tensor.strides]
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)

    def _member(self, storage: "_Storage") -> str:
        return f"{self._root}data/{storage.key}"

    def _misfit(self, tensor: "_Tensor") -> str | None:
        """The reason why a tensor does not fit its storage; `None` if it does."""
        try:
            member = self._archive.getinfo(self._member(tensor.storage))
        except KeyError:
            return "has no data in the archive"
        if not _is_stored(member) or member.file_size != tensor.storage.size:
            return "has data of another size than it says"
        # With strides of 0, one number can claim any shape.
        if math.prod(tensor.shape) > tensor.storage.count:
            return "has more numbers than its data"
        steps = zip(tensor.shape, tensor.strides, strict=True)
        end = tensor.offset + sum((count - 1) * step for count, step in steps) + 1
        if math.prod(tensor.shape) and end * tensor.storage.dtype.itemsize > tensor.storage.size:
            return "reaches beyond its data"
        return None

    def _bytes(self, member: str, most: int) -> bytes:
        try:
            info = self._archive.getinfo(member)
            if not _is_stored(info):
                raise UserError(f"{self.name}: {member} is compressed, not as torch does; {_AGAIN}")
            if info.file_size > most:
                raise UserError(f"{self.name}: {member} is larger than {most} bytes; {_AGAIN}")
            data = self._archive.read(info)
            if len(data) != info.file_size:
                raise UserError(f"{self.name}: {member} is cut short; {_AGAIN}")
            return data
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"{self.name}: {error.strerror or error}; {_AGAIN}") from None
        except Exception as error:  # zipfile, zlib and struct raise exceptions of many types.
            raise UserError(f"{self.name}: damaged ({_line(error)}); {_AGAIN}") from None


def _is_stored(member: zipfile.ZipInfo) -> bool:
    """Whether a member claims to be uncompressed, with two equal sizes (both may be wrong)."""
    return member.compress_type == zipfile.ZIP_STORED and member.compress_size == member.file_size


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; check the path") from None
    except Exception as error:  # Damaged archives raise exceptions of many types.
        with path.open("rb") as file:
            start = file.read(4)
        if start[:2] == b"\x80\x02":
            raise UserError(
                f"{path}: a file of torch before 1.6 (a bare pickle), which is not read; {_CURE}"
            ) from None
        raise UserError(f"{path}: damaged or cut short ({_line(error)}); {_AGAIN}") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


@dataclasses.dataclass(frozen=True)
class _Global:
    """An inert mark on the reader's stack for a name in the pickle: neither function nor class."""

    name: str
    call: Callable[..., Any] | None = None


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    count: int

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.count * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Module:
    """A TorchScript module, reduced to its attributes."""

    def __init__(self) -> None:
        self.attributes: dict[Any, Any] = {}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    numbers = isinstance(shape, tuple) and isinstance(strides, tuple) and (offset, *shape, *strides)
    sound = numbers and all(type(n) is int and 0 <= n < 2**48 for n in numbers)
    # Sizes of 0 are left out of the product: otherwise nothing bounds the others.
    sound = sound and math.prod(n for n in shape if n) < 2**48
    if not (isinstance(storage, _Storage) and sound and len(shape) == len(strides) <= 8):
        raise ValueError("a tensor that is none")
    return _Tensor(storage, offset, shape, strides)


def _first(value: Any, *_: Any) -> Any:
    return value


def _dict(*pairs: Any) -> dict[Any, Any]:
    # torch fills it by opcodes. With arguments, every few bytes could copy one long list.
    if pairs:
        raise RefusedError("it calls 'collections.OrderedDict' with arguments")
    return {}


_CALLS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "collections.OrderedDict": _dict,
    # Calls that wrap lists in TorchScript archives.
    "torch.jit._pickle.build_intlist": _first,
    "torch.jit._pickle.build_doublelist": _first,
    "torch.jit._pickle.build_boollist": _first,
    "torch.jit._pickle.build_tensorlist": _first,
    "torch.jit._pickle.restore_type_tag": _first,
}


class _TorchUnpickler(StrictUnpickler):
    """Turns names into marks, and handles calls, objects and attributes itself."""

    dispatch = opcodes(f"{PLAIN} BINPERSID NEWOBJ BUILD")

    def find_class(self, module: str, name: str) -> _Global:
        full = f"{module}.{name}"
        if full in _CALLS:
            return _Global(full, _CALLS[full])
        if module in ("torch", "torch.cuda") and name in _STORAGES:
            return _Global(name)
        if module.split(".")[0] == "__torch__":
            return _Global("__torch__")
        raise RefusedError(f"it asks for {full[:80]!r}, which is no tensor")

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage that `pid` describes: `("storage", its type, key, device, count)`."""
        kind, mark, key, _, count = pid
        if kind != "storage" or not isinstance(mark, _Global) or mark.name not in _STORAGES:
            raise ValueError("a storage that is none")
        if type(key) is not str or type(count) is not int or not 0 <= count < 2**48:
            raise ValueError("a storage that is none")
        return _Storage(key, np.dtype(_STORAGES[mark.name]), count)

    def load_reduce(self) -> None:
        arguments, mark = self.stack.pop(), self.stack.pop()  # pyright: ignore
        if not isinstance(mark, _Global) or mark.call is None or type(arguments) is not tuple:
            called = mark.name if isinstance(mark, _Global) else type(mark).__name__
            raise RefusedError(f"it calls {called[:80]!r}")
        self.stack.append(mark.call(*arguments))  # pyright: ignore

    def load_newobj(self) -> None:
        arguments, mark = self.stack.pop(), self.stack.pop()  # pyright: ignore
        if mark != _Global("__torch__") or arguments != ():
            raise RefusedError("it makes an object that is no TorchScript module")
        self.stack.append(_Module())  # pyright: ignore

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]  # pyright: ignore
        if isinstance(made, _Module) and type(state) is dict:
            made.attributes = state
        elif type(made) is not dict:  # Attributes of an OrderedDict (`_metadata`) are ignored.
            raise RefusedError("it sets attributes of something that is no TorchScript module")

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build


def _entries(made: Any, name: str) -> Iterator[tuple[str, _Tensor]]:
    """The names and tensors of the state dict in the object that a pickle describes."""
    if isinstance(made, dict) and not _has_tensors(made):
        # A training checkpoint holds the weights beside other things. One dict may be the value of
        # very many keys, so each dict is looked at only once.
        values = {id(value): value for value in made.values()}
        full = {number for number, value in values.items() if _has_tensors(value)}
        inner = [key for key, value in made.items() if isinstance(key, str) and id(value) in full]
        if len(inner) > 1:
            raise UserError(f"{name}: several state dicts: {', '.join(inner)[:200]!r}; {_CURE}")
        made = made[inner[0]] if inner else {}
    if not _has_tensors(made):
        raise UserError(f"{name}: it holds no weights; name a file of a model's state dict")
    seen = 0
    waiting = [("", made, 0)]
    while waiting:
        prefix, value, depth = waiting.pop()
        inner = value.attributes if isinstance(value, _Module) else value
        found = inner if isinstance(inner, dict) else {}
        seen += 1 + len(found)
        # A module may contain itself, or be contained in very many others.
        if seen > _MOST_ENTRIES or depth > _DEEPEST:
            raise UserError(f"{name}: refused, its modules have no end; {_CURE}")
        if isinstance(value, _Tensor):
            yield prefix, value
        for key, one in reversed(found.items()):
            if isinstance(key, str) and isinstance(one, _Module | _Tensor):
                if len(prefix) + len(key) >= _LONGEST_NAME:
                    raise UserError(f"{name}: an entry's name is no name: {key[:60]!r}; {_AGAIN}")
                waiting.append((f"{prefix}.{key}" if prefix else key, one, depth + 1))


def _has_tensors(value: Any) -> bool:
    if isinstance(value, _Module):
        return True
    return isinstance(value, dict) and any(isinstance(v, _Tensor) for v in value.values())
