"""Reads torch's files without torch, and without running code from them.

- Zip archives of `torch.save` (a state dict, or a dict that contains one) and TorchScript (in which
  OpenAI published CLIP). Both store the structure in `data.pkl` and each storage as a member of its own,
  uncompressed.
- Bare pickles: files of torch before 1.6, and detectron2's `.pkl`, whose arrays are numpy's or tensors.
"""

import io
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from refseg_jax.errors import UserError
from refseg_jax.unpickling import run
from refseg_jax.weights.torch_objects import AGAIN, CURE, Numbers, Storage, Tensor, entries
from refseg_jax.weights.torch_pickles import BareUnpickler, Metered, TorchUnpickler

_Entries = dict[str, Tensor | Numbers]


class TorchFile:
    """An opened archive, an implementation of `refseg_jax.weights.loader.Weights`.

    Entries have the names of torch's `state_dict()`.
    """

    def __init__(self, path: Path, beside: Collection[str] = ()):
        """Reads the structure, but no arrays (except those of numpy, which lie in it).

        Args:
            path: the file.
            beside: further state dicts to read, see `refseg_jax.weights.torch_objects.entries`.

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
        data = self._bytes(members[0], path.stat().st_size)
        made = run(TorchUnpickler(Metered(io.BytesIO(data))), name=self.name, cure=CURE)
        self._entries = _checked(made, self.name, self._misfit, beside)
        self.shapes = _shapes(self._entries)
        self._last: tuple[str, bytes] = "", b""

    def read(self, entry: str) -> np.ndarray:
        """Reads the array of an entry; the array is read-only.

        Raises:
            UserError: the checksum of its data is wrong, or the data cannot be read.
        """
        found = self._entries[entry]
        if isinstance(found, Numbers):
            return found.read()
        member = self._member(found.storage)
        if self._last[0] != member:  # Consecutive entries may be parts of one storage.
            self._last = member, self._bytes(member, found.storage.size)
        return found.of(self._last[1])

    def _member(self, storage: Storage) -> str:
        return f"{self._root}data/{storage.key}"

    def _misfit(self, tensor: Tensor) -> str | None:
        """The reason why a tensor does not fit its storage; `None` if it does."""
        try:
            member = self._archive.getinfo(self._member(tensor.storage))
        except KeyError:
            return "has no data in the archive"
        if not _is_stored(member):
            return "has data of another size than it says"
        return tensor.misfit(member.file_size)

    def _bytes(self, member: str, most: int) -> bytes:
        try:
            info = self._archive.getinfo(member)
            if not _is_stored(info):
                raise UserError(f"{self.name}: {member} is compressed, not as torch does; {AGAIN}")
            if info.file_size > most:
                raise UserError(f"{self.name}: {member} is larger than {most} bytes; {AGAIN}")
            data = self._archive.read(info)
            if len(data) != info.file_size:
                raise UserError(f"{self.name}: {member} is cut short; {AGAIN}")
            return data
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"{self.name}: {error.strerror or error}; {AGAIN}") from None
        except Exception as error:  # zipfile, zlib and struct raise exceptions of many types.
            raise UserError(f"{self.name}: damaged ({_line(error)}); {AGAIN}") from None


class BarePickle:
    """An opened pickle, an implementation of `refseg_jax.weights.loader.Weights`.

    The format has no checksums: only a digest of the file finds a flipped bit in its numbers.
    """

    def __init__(self, path: Path, beside: Collection[str] = ()):
        """Reads the structure, and the arrays that lie in it: those of numpy, and pickled tensors.

        Args:
            path: the file.
            beside: further state dicts to read, see `refseg_jax.weights.torch_objects.entries`.

        Raises:
            UserError: the file is missing, damaged, of another kind, or contains more than arrays.
        """
        self.name, self._path = str(path), path
        try:
            with path.open("rb") as file:
                reader = BareUnpickler(Metered(file))
                made = run(reader, name=self.name, cure=CURE)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}; check the path") from None
        self._places = reader.places
        self._entries = _checked(made, self.name, self._misfit, beside)
        self.shapes = _shapes(self._entries)

    def read(self, entry: str) -> np.ndarray:
        """Reads the array of an entry; the array is read-only.

        Raises:
            UserError: the data cannot be read.
        """
        found = self._entries[entry]
        if isinstance(found, Numbers):
            return found.read()
        if found.storage.data is not None:
            return found.of(found.storage.data)
        start, size = self._places[found.storage.key]
        try:
            with self._path.open("rb") as file:
                file.seek(start)
                data = file.read(size)
        except OSError as error:
            raise UserError(f"{self.name}: {error.strerror or error}; {AGAIN}") from None
        if len(data) != size:
            raise UserError(f"{self.name}: entry {entry!r} is cut short; {AGAIN}")
        return found.of(data)

    def _misfit(self, tensor: Tensor) -> str | None:
        """The reason why a tensor does not fit its storage; `None` if it does."""
        data = tensor.storage.data
        if data is not None:
            return tensor.misfit(len(data))
        if tensor.storage.key not in self._places:
            return "has no data in the file"
        return tensor.misfit(self._places[tensor.storage.key][1])


def _checked(
    made: Any, name: str, misfit: Callable[[Tensor], str | None], beside: Collection[str]
) -> _Entries:
    """The entries of an object, whose tensors fit their storages."""
    found = dict(entries(made, name, beside))
    for entry, one in found.items():
        if isinstance(one, Tensor) and (trouble := misfit(one)):
            raise UserError(f"{name}: entry {entry!r} {trouble}; {AGAIN}")
    return found


def _shapes(found: _Entries) -> Mapping[str, jax.ShapeDtypeStruct]:
    return {entry: jax.ShapeDtypeStruct(one.shape, one.dtype) for entry, one in found.items()}


def _is_stored(member: zipfile.ZipInfo) -> bool:
    """Whether a member claims to be uncompressed, with two equal sizes (both may be wrong)."""
    return member.compress_type == zipfile.ZIP_STORED and member.compress_size == member.file_size


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; check the path") from None
    except Exception as error:  # Damaged archives raise exceptions of many types.
        raise UserError(f"{path}: damaged or cut short ({_line(error)}); {AGAIN}") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
