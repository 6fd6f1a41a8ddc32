"""Reads torch's files without torch and without running anything of them.

Two kinds of zip archive: what `torch.save` writes (a state dict, or a dict that holds one), and
TorchScript (as OpenAI published CLIP). Both have the structure in `data.pkl` and every storage as a
member of its own, all uncompressed. The pickle's globals become inert marks, of which a few make a
tensor's description; no function is ever looked up.
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

#: More entries than any model has: a small pickle can describe very many.
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
    """An opened archive; implements `refseg_jax.weights.loader.Weights`.

    Entries have the names of torch's `state_dict()`.
    """

    def __init__(self, path: Path):
        """Reads the structure, but no array.

        Raises:
            UserError: the file is missing, damaged, of another kind, or asks for more than tensors.
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
        """One entry, read-only.

        Raises:
            UserError: its checksum is off.
        """
        tensor = self._tensors[entry]
        storage = tensor.storage
        member = self._member(storage)
        if self._last[0] != member:  # Neighbouring entries may be cut from one storage.
            self._last = member, self._bytes(member, storage.size)
        flat = np.frombuffer(self._last[1], storage.dtype)[tensor.offset :]
        strides = [step * storage.dtype.itemsize for step in tensor.strides]
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)

    def _member(self, storage: "_Storage") -> str:
        return f"{self._root}data/{storage.key}"

    def _misfit(self, tensor: "_Tensor") -> str | None:
        """Why a tensor cannot lie in its storage; `None` where it can."""
        try:
            member = self._archive.getinfo(self._member(tensor.storage))
        except KeyError:
            return "has no data in the archive"
        if not _is_stored(member) or member.file_size != tensor.storage.size:
            return "has data of another size than it says"
        # Steps of nothing make any shape out of one number.
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
        except Exception as error:  # zipfile, zlib and struct each have errors of their own.
            raise UserError(f"{self.name}: damaged ({_line(error)}); {_AGAIN}") from None


def _is_stored(member: zipfile.ZipInfo) -> bool:
    """Whether it is uncompressed, and as large as its two sizes, which may lie, both say."""
    return member.compress_type == zipfile.ZIP_STORED and member.compress_size == member.file_size


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; check the path") from None
    except Exception as error:  # Damage shows in many ways.
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
    """What stands on the reader's stack for a name: no function, no class."""

    name: str
    call: Callable[..., Any] | None = None


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    count: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Module:
    """A TorchScript module: attributes and nothing else."""

    def __init__(self) -> None:
        self.attributes: dict[Any, Any] = {}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    numbers = isinstance(shape, tuple) and isinstance(strides, tuple) and (offset, *shape, *strides)
    sound = numbers and all(type(n) is int and 0 <= n < 2**48 for n in numbers)
    # Of an empty one too: else nothing bounds the other sides.
    sound = sound and math.prod(n for n in shape if n) < 2**48
    if not (isinstance(storage, _Storage) and sound and len(shape) == len(strides) <= 8):
        raise ValueError("a tensor that is none")
    return _Tensor(storage, offset, shape, strides)


def _first(value: Any, *_: Any) -> Any:
    return value


def _dict(*pairs: Any) -> dict[Any, Any]:
    # torch fills it by opcodes; one list could be passed, and copied, in every few bytes.
    if pairs:
        raise RefusedError("it calls 'collections.OrderedDict' with arguments")
    return {}


_CALLS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "collections.OrderedDict": _dict,
    # Of lists in TorchScript archives.
    "torch.jit._pickle.build_intlist": _first,
    "torch.jit._pickle.build_doublelist": _first,
    "torch.jit._pickle.build_boollist": _first,
    "torch.jit._pickle.build_tensorlist": _first,
    "torch.jit._pickle.restore_type_tag": _first,
}


class _TorchUnpickler(StrictUnpickler):
    """Marks for names; calls, objects and their attributes are done here, not by Python."""

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
        """A storage: `("storage", its type, key, device, count)`."""
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
        elif type(made) is not dict:  # An OrderedDict's own attributes (`_metadata`) do not matter.
            raise RefusedError("it sets attributes of something that is no TorchScript module")

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build


def _entries(made: Any, name: str) -> Iterator[tuple[str, _Tensor]]:
    """The state dict of what a pickle made."""
    if isinstance(made, dict) and not _has_tensors(made):
        # A training checkpoint: the weights are one of several things.
        # One dict may be the value of very many keys: each is looked at once.
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
        # A module may be part of itself, or of very many.
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
