"""Reads the pickles of torch's files without torch, and without running code from them.

Names in a pickle become inert marks, a few of which build descriptions: of tensors and their storages,
of TorchScript's modules, and of numpy's arrays, which detectron2's `.pkl` files hold and training
checkpoints contain. No function is ever looked up by name.
"""

import dataclasses
import io
import math
import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from refseg_jax.unpickling import (
    PLAIN,
    Kind,
    RefusedError,
    StrictUnpickler,
    numbers_of,
    opcodes,
    scalar,
)
from refseg_jax.weights.torch_objects import Module, Numbers, Settings, Storage, Tensor

#: The first pickle of a file of torch before 1.6.
_MAGIC = 0x1950A86A20F9469CFC6C

#: Bound on the bytes that describe structure: one of them can make an object of 60 bytes. Reads of
#: `_BULK` bytes and more are numbers (or long texts), which take the memory that they have in the file.
_MOST_STRUCTURE = 2**24
_BULK = 2**10

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


@dataclasses.dataclass(frozen=True)
class _Global:
    """An inert mark on the reader's stack for a name in the pickle: neither function nor class."""

    name: str
    call: Callable[..., Any] | None = None


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    numbers = isinstance(shape, tuple) and isinstance(strides, tuple) and (offset, *shape, *strides)
    sound = numbers and all(type(n) is int and 0 <= n < 2**48 for n in numbers)
    # Sizes of 0 are left out of the product: otherwise nothing bounds the others.
    sound = sound and math.prod(n for n in shape if n) < 2**48
    if not (isinstance(storage, Storage) and sound and len(shape) == len(strides) <= 8):
        raise ValueError("a tensor that is none")
    return Tensor(storage, offset, shape, strides)


def _first(value: Any, *_: Any) -> Any:
    return value


def _dict(*pairs: Any) -> dict[Any, Any]:
    # torch fills it by opcodes. With arguments, every few bytes could copy one long list.
    if pairs:
        raise RefusedError("it calls 'collections.OrderedDict' with arguments")
    return {}


_NDARRAY = "numpy.ndarray"

#: What command lines are parsed to; trainings store theirs beside the weights.
_SETTINGS = "argparse.Namespace"


def _array(kind: Any, *_: Any) -> Numbers:
    if kind != _Global(_NDARRAY):
        raise RefusedError("it has an array of a class of its own")
    return Numbers()


def _whole_array(data: Any, kind: Any, shape: Any, order: Any = "C") -> Numbers:
    """An array of protocol 5, whose numbers come first."""
    return Numbers(numbers_of(shape, kind, data, fortran=order == "F"))


def _empty() -> bytes:
    return b""


_CALLS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "collections.OrderedDict": _dict,
    # Calls that wrap lists in TorchScript archives.
    "torch.jit._pickle.build_intlist": _first,
    "torch.jit._pickle.build_doublelist": _first,
    "torch.jit._pickle.build_boollist": _first,
    "torch.jit._pickle.build_tensorlist": _first,
    "torch.jit._pickle.restore_type_tag": _first,
    # Arrays of numpy, and empty bytes as protocols 0 to 2 write them.
    "numpy.core.multiarray._reconstruct": _array,
    "numpy.core.multiarray.scalar": scalar,
    "numpy.core.numeric._frombuffer": _whole_array,
    "numpy.dtype": Kind,
    "__builtin__.bytes": _empty,
    "builtins.bytes": _empty,
}


class Metered:
    """A stream that refuses to give more than `_MOST_STRUCTURE` bytes in small pieces.

    Attributes:
        stream: the stream itself.
        size: its length in bytes.
        left: how many bytes may still be read in small pieces; shared by streams within one file.
    """

    def __init__(self, stream: BinaryIO, left: list[int] | None = None) -> None:
        self.stream = stream
        self.size = stream.seek(0, io.SEEK_END)
        self.left = [_MOST_STRUCTURE] if left is None else left
        stream.seek(0)

    def read(self, size: int) -> bytes:
        """Reads `size` bytes, or fewer at the end."""
        if size < _BULK:
            self._take(size)
            return self.stream.read(size)
        # A file would make room for any size that a pickle states.
        return self.stream.read(min(size, self.size - self.stream.tell()))

    def readline(self) -> bytes:
        """Reads a line."""
        line = self.stream.readline()
        self._take(len(line))
        if line[-1:] != b"\n":
            raise EOFError("a line is cut short")
        return line

    def _take(self, size: int) -> None:
        self.left[0] -= size
        if self.left[0] < 0:
            raise RefusedError(f"its structure takes more than {_MOST_STRUCTURE} bytes")


class TorchUnpickler(StrictUnpickler):
    """Turns names into marks, and handles calls, objects and attributes itself."""

    dispatch = opcodes(f"{PLAIN} BINPERSID NEWOBJ BUILD BYTEARRAY8")

    def __init__(self, stream: Metered, *, inner: bool = False) -> None:
        """Reads one pickle of a stream; `inner`: one that lies within another."""
        super().__init__(stream, size=stream.size)  # pyright: ignore[reportArgumentType]
        self._stream, self._inner = stream, inner
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The mark of a name.

        Raises:
            RefusedError: the name is none that torch's files of weights have.
        """
        # numpy 2 calls its core by another name.
        full = f"{module}.{name}".replace("numpy._core.", "numpy.core.", 1)
        if full in _CALLS:
            return _Global(full, _CALLS[full])
        if full == "torch.storage._load_from_bytes" and not self._inner:
            return _Global(full, self._storage_within)
        if full == "_codecs.encode":
            return _Global(full, self.latin1_bytes)
        if full == _NDARRAY:
            return _Global(full)
        if full == _SETTINGS:
            return _Global(full)
        if module in ("torch", "torch.cuda") and name in _STORAGES:
            return _Global(name)
        if module.split(".")[0] == "__torch__":
            return _Global("__torch__")
        raise RefusedError(f"it asks for {full[:80]!r}, which is no tensor")

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that `pid` describes: `("storage", its type, key, device, count)`."""
        kind, mark, key, _, count, *view = pid
        if kind != "storage" or not isinstance(mark, _Global) or mark.name not in _STORAGES:
            raise ValueError("a storage that is none")
        if type(key) is not str or type(count) is not int or not 0 <= count < 2**48:
            raise ValueError("a storage that is none")
        if any(part is not None for part in view):
            raise RefusedError("it has a storage that is a view of another")
        self.storages[key] = Storage(key, np.dtype(_STORAGES[mark.name]), count)
        return self.storages[key]

    def _storage_within(self, data: Any) -> Storage:
        """A storage as `pickle.dumps(tensor)` holds it: a file of torch before 1.6 within the pickle."""
        if type(data) is not bytes:
            raise ValueError("a storage that is none")
        stream = Metered(io.BytesIO(data), self._stream.left)
        reader = BareUnpickler(stream, inner=True)
        made = reader.load()
        if not isinstance(made, Storage) or made.key not in reader.places:
            raise ValueError("a storage that is none")
        start, size = reader.places[made.key]
        return dataclasses.replace(made, data=memoryview(data)[start : start + size])

    def _load_reduce(self) -> None:
        arguments, mark = self.stack.pop(), self.stack.pop()  # pyright: ignore
        if not isinstance(mark, _Global) or mark.call is None or type(arguments) is not tuple:
            called = mark.name if isinstance(mark, _Global) else type(mark).__name__
            raise RefusedError(f"it calls {called[:80]!r}")
        self.stack.append(mark.call(*arguments))  # pyright: ignore

    def _load_newobj(self) -> None:
        arguments, mark = self.stack.pop(), self.stack.pop()  # pyright: ignore
        if mark not in (_Global("__torch__"), _Global(_SETTINGS)) or arguments != ():
            raise RefusedError("it makes an object that is no TorchScript module")
        made = Settings() if mark == _Global(_SETTINGS) else Module()
        self.stack.append(made)  # pyright: ignore

    def _load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]  # pyright: ignore
        if isinstance(made, Numbers | Kind):
            made.fill(state)
        elif isinstance(made, Module) and type(state) is dict:
            made.attributes = state
        elif (
            not isinstance(made, Settings) and type(made) is not dict
        ):  # Attributes of an OrderedDict (`_metadata`) are ignored.
            raise RefusedError("it sets attributes of something that is no TorchScript module")

    def _load_frame(self) -> None:
        # A frame would be read at once, past the meter; pickles need none to be read.
        self._stream.read(8)

    def _load_bytearray8(self) -> None:
        # Read instead of allocated, because the pickle may state any size.
        (size,) = struct.unpack("<Q", self._stream.read(8))
        data = self._stream.read(size)
        if len(data) != size:
            raise EOFError("bytes are cut short")
        self.stack.append(data)  # pyright: ignore

    dispatch[pickle.REDUCE[0]] = _load_reduce
    dispatch[pickle.NEWOBJ[0]] = _load_newobj
    dispatch[pickle.BUILD[0]] = _load_build
    dispatch[pickle.FRAME[0]] = _load_frame
    dispatch[pickle.BYTEARRAY8[0]] = _load_bytearray8


class BareUnpickler(TorchUnpickler):
    """Reads a file that is a pickle, or one of torch before 1.6, which begins with a magic number.

    Behind that number follow pickles of a version, of the machine, of the object and of the names of
    storages; then each storage, as the number of its elements in 8 bytes, and the elements.

    Attributes:
        places: storage -> its start in the stream and its size in bytes; empty for a mere pickle.
    """

    def __init__(self, stream: Metered, *, inner: bool = False) -> None:
        super().__init__(stream, inner=inner)
        self.places: dict[str, tuple[int, int]] = {}

    def load(self) -> Any:
        """The object; the stream is then behind it."""
        made = super().load()
        if type(made) is not int or made != _MAGIC:
            return made
        stream = self._stream
        if TorchUnpickler(stream, inner=True).load() != 1001:
            raise RefusedError("it has an unknown version of the format before torch 1.6")
        if not TorchUnpickler(stream, inner=True).load()["little_endian"]:
            raise RefusedError("it was written on a big-endian machine")
        reader = TorchUnpickler(stream, inner=self._inner)
        made = reader.load()
        for key in TorchUnpickler(stream, inner=True).load():
            if type(key) is not str:  # Others may take forever to hash.
                raise ValueError("the name of a storage is none")
            (count,) = struct.unpack("<q", stream.read(8))
            storage = reader.storages[key]
            start = stream.stream.tell()
            if count != storage.count or start + storage.size > stream.size:
                raise EOFError("its numbers are cut short")
            self.places[key] = start, storage.size
            stream.stream.seek(start + storage.size)
        return made
