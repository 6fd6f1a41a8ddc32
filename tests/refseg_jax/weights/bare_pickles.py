"""Writes bare pickles of weights without torch; a parity test reads torch's own."""

import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests.refseg_jax.weights.torch_archive import Call, Global, Storage, TorchPickler

_TYPES = {"float64": "Double", "float32": "Float", "float16": "Half", "int64": "Long"}
_TYPES["bfloat16"] = "BFloat16"


class _OldPickler(TorchPickler):
    """Persistent ids as before torch 1.6: with a sixth part, for storages that are views."""

    def persistent_id(self, obj: Any) -> Any:
        found = super().persistent_id(obj)
        return found and (*found, None)


def _dumped(made: Any, protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    _OldPickler(stream, protocol).dump(made)
    return stream.getvalue()


def _storage(array: np.ndarray, key: str) -> Storage:
    return Storage(f"{_TYPES[str(array.dtype)]}Storage", key, array.size)


def _tensor(array: np.ndarray, storage: Any) -> Call:
    strides = tuple(step // array.dtype.itemsize for step in array.strides)
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, storage, 0, array.shape, strides, False, OrderedDict())


def _around(made: Any, storages: Mapping[str, np.ndarray], *, little: bool, version: int) -> bytes:
    sizes = {"short": 2, "int": 4, "long": 4}
    machine = {"protocol_version": version, "little_endian": little, "type_sizes": sizes}
    parts = [0x1950A86A20F9469CFC6C, version, machine, made, list(storages)]
    out = b"".join(map(_dumped, parts))
    return out + b"".join(struct.pack("<q", x.size) + x.tobytes("A") for x in storages.values())


def before_1_6(
    arrays: Mapping[str, np.ndarray],
    *,
    wrap: Callable[[Any], Any] = lambda state: state,
    little: bool = True,
    version: int = 1001,
) -> bytes:
    """A state dict as `torch.save(..., _use_new_zipfile_serialization=False)` writes it."""
    keys = {entry: str(94_000_000 + number) for number, entry in enumerate(arrays)}
    state = OrderedDict((e, _tensor(x, _storage(x, keys[e]))) for e, x in arrays.items())
    storages = {keys[entry]: x for entry, x in arrays.items()}
    return _around(wrap(state), storages, little=little, version=version)


def pickled_tensors(arrays: Mapping[str, np.ndarray], protocol: int = 4) -> bytes:
    """As `pickle.dump({"model": state_dict, ...})`, which Mask2Former's and ReLA's tool writes."""
    load = Global("torch.storage", "_load_from_bytes")

    def within(array: np.ndarray) -> Call:
        return Call(load, _around(_storage(array, "7"), {"7": array}, little=True, version=1001))

    state = {entry: _tensor(x, within(x)) for entry, x in arrays.items()}
    made = {"model": state, "__author__": "third_party", "matching_heuristics": True}
    return _dumped(made, protocol)


def detectron2(arrays: Mapping[str, np.ndarray], protocol: int = 4) -> bytes:
    """As detectron2's model zoo has them: numpy's arrays."""
    made = {"model": dict(arrays), "__author__": "Detectron2", "matching_heuristics": True}
    return pickle.dumps(made, protocol)
