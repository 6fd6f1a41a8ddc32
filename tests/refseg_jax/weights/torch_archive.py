"""Writes the archives of `torch.save` without torch; parity tests read torch's own."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
}


class Global(NamedTuple):
    """A global name in the pickle."""

    module: str
    name: str


class Call:
    """A call of a global in the pickle."""

    def __init__(self, function: Global, *arguments: Any):
        self.function, self.arguments = function, arguments


class Storage(NamedTuple):
    """A storage, as torch's persistent ids describe it."""

    type: str
    key: str
    count: int


class TorchPickler(pickle._Pickler):
    """Pickles `Global` as a name, `Call` as a call, and `Storage` as a persistent id."""

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Storage):
            return ("storage", Global("torch", obj.type), obj.key, "cpu", obj.count)
        return None

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Global):
            self._write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self._write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)  # pyright: ignore

    def _write(self, data: bytes) -> None:
        vars(self)["write"](data)


def torch_archive(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    *,
    wrap: Callable[[Any], Any] = lambda state_dict: state_dict,
    shared: np.ndarray | None = None,
    lies: Mapping[str, Mapping[str, Any]] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Writes a state dict.

    Args:
        path: the file.
        arrays: name of an entry -> its array.
        wrap: maps the state dict to the pickled object (or to the bytes of the pickle).
        shared: array of which all entries are views; it is written as one storage.
        lies: name of an entry -> properties that are stated wrongly for it.
        compression: compression of the members.
    """
    storages: dict[str, bytes] = {}
    state: OrderedDict[str, Any] = OrderedDict()
    for number, (entry, array) in enumerate(arrays.items()):
        base = array if shared is None else shared
        key = "0" if shared is not None else str(number)
        storages[key] = base.tobytes()
        size = base.dtype.itemsize
        start = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
        told: dict[str, Any] = {
            "key": key,
            "count": base.size,
            "offset": start // size,
            "shape": array.shape,
            "strides": tuple(step // size for step in array.strides),
            **(lies or {}).get(entry, {}),
        }
        state[entry] = Call(
            Global("torch._utils", "_rebuild_tensor_v2"),
            Storage(_STORAGES[str(base.dtype)], told["key"], told["count"]),
            *(told[name] for name in ("offset", "shape", "strides")),
            False,
            OrderedDict(),
        )
    made = wrap(state)
    if not isinstance(made, bytes):
        stream = io.BytesIO()
        TorchPickler(stream, 2).dump(made)
        made = stream.getvalue()
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", made)
        archive.writestr("archive/byteorder", "little")
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return path
