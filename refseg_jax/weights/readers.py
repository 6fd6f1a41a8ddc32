"""Opens weight files: safetensors (one file or shards), torch's files and detectron2's pickles."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from refseg_jax.errors import UserError, instead
from refseg_jax.images.files import check_regular
from refseg_jax.weights.loader import Weights
from refseg_jax.weights.torch_files import BarePickle, TorchFile

_AGAIN = "download or copy the file again"

_DTYPES: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_INDEX = ".safetensors.index.json"
_TORCH, _PICKLE = (".pt", ".pth", ".bin"), ".pkl"
#: File name endings of all supported weight files.
ENDINGS = (*_TORCH, _PICKLE, ".safetensors")


def open_weights(path: Path, *, sha256: str = "", beside: Collection[str] = ()) -> Weights:
    """Opens a weight file without reading its arrays.

    Args:
        path: `*.safetensors`, `*.safetensors.index.json` with its shards beside it, a file of torch
            (`.pt`, `.pth`, `.bin`), or a pickle of arrays or tensors, as detectron2 has them (`.pkl`).
        sha256: digest of the file in hexadecimal; for shards, that of their concatenation in the
            order of their names (`cat model-*.safetensors | sha256sum`). `""` skips the check: a
            flipped bit in the numbers of a safetensors file or of a pickle (also of torch before 1.6)
            then goes unnoticed.
        beside: keys of state dicts that a file of torch may hold beside that of the model; their entries
            have the key and a dot before their names.

    Raises:
        UserError: the file is missing, damaged, malicious or of another kind, or its digest differs.
    """
    shards = shards_of(path)
    if sha256:
        _check_digest(path, shards, sha256)
    start = b"" if path.name.endswith(_INDEX) else _start(path)
    if what := instead(start):
        raise UserError(f"{path}: {what}")
    # A safetensors file starts with the length of its header, which may be the same bytes; its ninth
    # byte is the brace of the header.
    other = start[8:9] != b"{"
    if path.suffix == _PICKLE or (start[:1] == b"\x80" and other):
        weights: Weights = BarePickle(path, beside)
    elif path.suffix in _TORCH or (start[:4] == b"PK\x03\x04" and other):
        weights = TorchFile(path, beside)
    else:
        weights = SafetensorFiles(path, shards)
    for entry in weights.shapes:
        if not entry.isprintable() or len(entry) > 300:
            raise UserError(f"{path}: an entry's name is no name: {entry[:60]!r}; {_AGAIN}")
    return weights


class SafetensorFiles:
    """Opened (mapped) safetensors files; implements `refseg_jax.weights.loader.Weights`."""

    def __init__(self, path: Path, shards: Sequence[Path]):
        """Reads the headers.

        Raises:
            UserError: a file is missing or damaged, or an entry occurs twice or has an unsupported
                type.
        """
        self.name = str(path)
        self._files: dict[str, tuple[Path, Any]] = {}
        shapes: dict[str, jax.ShapeDtypeStruct] = {}
        for shard in shards:
            file = _opened(shard)
            for entry in file.keys():  # noqa: SIM118
                if entry in self._files:
                    raise UserError(f"{shard}: entry {entry!r} is in another shard too; {_AGAIN}")
                view = file.get_slice(entry)
                if view.get_dtype() not in _DTYPES:
                    raise UserError(
                        f"{shard}: entry {entry!r} is of type {view.get_dtype()}, which is not "
                        "read; use a file in float32, float16 or bfloat16"
                    )
                self._files[entry] = shard, file
                dtype = _DTYPES[view.get_dtype()]
                shapes[entry] = jax.ShapeDtypeStruct(tuple(view.get_shape()), dtype)
        self.shapes: Mapping[str, jax.ShapeDtypeStruct] = shapes

    def read(self, entry: str) -> np.ndarray:
        """Reads the array of an entry.

        Raises:
            UserError: it cannot be read.
        """
        shard, file = self._files[entry]
        try:
            return file.get_tensor(entry)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{shard}: entry {entry!r}: {_line(error)}; {_AGAIN}") from None


def _opened(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="numpy")
    except SafetensorError as error:
        what = instead(_start(path)) or f"damaged or no safetensors ({_line(error)}); {_AGAIN}"
        raise UserError(f"{path}: {what}") from None
    except OSError as error:
        raise UserError(f"{path}: {_line(error)}; check the path") from None


def shards_of(index: Path) -> list[Path]:
    """The shards of an index, in the order of their names; for any other file, the file itself.

    Raises:
        UserError: the index is missing or damaged, or names files in other folders.
    """
    if not index.name.endswith(_INDEX):
        return [index]
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        strange = not names or any(not _is_shard(name) for name in names)
    except OSError as error:
        raise UserError(f"{index}: {error.strerror}; check the path") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        strange = True
        names = set()
    if strange:
        raise UserError(f"{index}: not the index of shards that lie beside it; {_AGAIN}")
    return [index.with_name(name) for name in sorted(names)]


def _is_shard(name: str) -> bool:
    return Path(name).name == name and name.endswith(".safetensors") and name.isprintable()


def _start(path: Path) -> bytes:
    """The first 16 bytes of a file."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check the path") from None


def _check_digest(path: Path, files: Sequence[Path], wanted: str) -> None:
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as stream:
                while block := stream.read(2**20):
                    digest.update(block)
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}; check the path") from None
    if digest.hexdigest() != wanted.strip().lower():
        raise UserError(
            f"{path}: SHA-256 is {digest.hexdigest()}, not {wanted.strip().lower()[:64]}: another "
            f"file or a damaged one; {_AGAIN}, or correct the digest"
        )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
