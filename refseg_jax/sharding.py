"""Where arrays live: the mesh, the table of parameter layouts, and batches across processes.

The mesh has three axes: `data` (batch only), `fsdp` (batch, and parameters cut along one
dimension), `tensor` (attention heads and MLP widths). Which parameter is cut how is an ordered
table of regular expressions over dotted parameter paths; the first match wins, and the table must
cover every path.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

T = TypeVar("T")

AXES = ("data", "fsdp", "tensor")
_BATCH_AXES = ("data", "fsdp")

#: A layout: `"replicate"`, `"fsdp"` (cut the largest dimension that divides), or the dimension that
#: the `tensor` axis cuts, counted from the end, as `"tensor:-1"` (the rest then follows `fsdp`).
Layout: TypeAlias = str

#: Parameters below this many numbers are not worth a gather per use.
_SMALLEST_CUT = 2**10

#: Megatron's rule: the first projection of a pair is cut by output, the second by input, so that a
#: pair costs one all-reduce. Everything else follows `fsdp` alone.
DEFAULT_LAYOUTS: tuple[tuple[str, Layout], ...] = (
    (r".*\.(query|key|value|up)\.kernel", "tensor:-1"),
    (r".*\.(query|key|value|up)\.bias", "tensor:-1"),
    (r".*\.(out|down)\.kernel", "tensor:-2"),
    (r".*", "fsdp"),
)


def join_processes() -> None:
    """Makes one run of the processes of a cluster.

    TPU pods and SLURM say who is there. Elsewhere the environment does, by `JAX_COORDINATOR_ADDRESS`
    (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    count, number = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    if address and count and number:
        jax.distributed.initialize(address, int(count), int(number))
    else:
        jax.distributed.initialize()


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1, which takes the devices that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A `(data, fsdp, tensor)` mesh over all devices, with Auto axes.

    Raises:
        ValueError: the sizes do not multiply to the number of devices, or processes would share
            rows.
    """
    devices = list(jax.devices()) if devices is None else list(devices)
    sizes = [config.data, config.fsdp, config.tensor]
    known = int(np.prod([s for s in sizes if s != -1]))
    if sizes.count(-1) > 1 or known <= 0 or len(devices) % known:
        raise ValueError(f"mesh {dict(zip(AXES, sizes, strict=True))} over {len(devices)} devices")
    sizes = [len(devices) // known if s == -1 else s for s in sizes]
    if int(np.prod(sizes)) != len(devices):
        raise ValueError(
            f"mesh {dict(zip(AXES, sizes, strict=True))} needs {int(np.prod(sizes))} devices, "
            f"there are {len(devices)}: set one of the axes to -1"
        )
    mesh = jax.make_mesh(
        tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )
    if batch_shards(mesh) % jax.process_count():
        raise ValueError(
            f"mesh {dict(mesh.shape)} over {jax.process_count()} processes: each must have rows of "
            "its own, so data * fsdp must be a multiple of their number; make tensor smaller"
        )
    return mesh


def replicated(mesh: Mesh) -> NamedSharding:
    """The layout of what every device holds whole."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The layout of a batch: rows cut over `data` and `fsdp`."""
    return NamedSharding(mesh, P(_BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Into how many pieces the rows of a batch are cut."""
    return int(np.prod([mesh.shape[a] for a in _BATCH_AXES]))


def param_shardings(
    shapes: Mapping[str, Any],
    mesh: Mesh,
    layouts: Sequence[tuple[str, Layout]] = DEFAULT_LAYOUTS,
) -> dict[str, NamedSharding]:
    """The layout of every parameter.

    Args:
        shapes: path -> anything with a `.shape`.
        mesh: the mesh.
        layouts: ordered (regular expression, layout); matched against the whole path.

    Raises:
        ValueError: a path that no row matches, or an unknown layout.
    """
    return {
        path: NamedSharding(mesh, _spec(path, leaf.shape, mesh, layouts))
        for path, leaf in shapes.items()
    }


def abstract_params(shapes: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype and default layout of every parameter, to load into."""
    layouts = param_shardings(shapes, mesh)
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layouts[path])
        for path, leaf in shapes.items()
    }


def state_shardings(shapes: Any, params: Mapping[str, NamedSharding], mesh: Mesh) -> Any:
    """Layouts of a whole train state: a leaf below a parameter's path is laid out like it.

    Optimiser moments and averages are dictionaries with the parameters' own keys, so the path in
    the tree says which parameter a leaf belongs to; everything else (counters) is replicated.
    """

    def layout(tree_path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        for key in reversed(tree_path):
            name = str(getattr(key, "key", ""))
            if name in params and len(params[name].spec) <= len(leaf.shape):
                return params[name]
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(layout, shapes)


def put_batch(batch: T, mesh: Mesh) -> T:
    """This process's rows (numpy) as part of global arrays; `B` is then the global batch size.

    Args:
        batch: a `Batch`, or any tree of arrays whose first axis is that of its rows.
        mesh: the devices.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is cut (or replicated) over its first axis."""
    rows: dict[int, np.ndarray] = {}
    for shard in array.addressable_shards:
        start = shard.index[0].start or 0 if shard.index else 0
        if start not in rows:
            rows[start] = np.asarray(shard.data)
    return np.concatenate([rows[start] for start in sorted(rows)])


def everywhere(value: bool) -> bool:
    """Whether it is true on all processes, which all have to ask."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.int32(value))))


def _spec(
    path: str, shape: tuple[int, ...], mesh: Mesh, layouts: Sequence[tuple[str, Layout]]
) -> P:
    layout = next((row for pattern, row in layouts if re.fullmatch(pattern, path)), None)
    if layout is None:
        raise ValueError(f"no row of the sharding table matches parameter {path!r}")
    cuts: list[str | None] = [None] * len(shape)
    kind, _, where = layout.partition(":")
    if kind not in ("replicate", "fsdp", "tensor"):
        raise ValueError(f"unknown layout {layout!r} for parameter {path!r}")
    if kind == "replicate" or int(np.prod(shape)) < _SMALLEST_CUT:
        return P()
    if kind == "tensor" and mesh.shape["tensor"] > 1:
        axis = int(where) % len(shape)
        if shape[axis] % mesh.shape["tensor"] == 0:
            cuts[axis] = "tensor"
    if mesh.shape["fsdp"] > 1:
        free = [i for i, cut in enumerate(cuts) if cut is None]
        whole = [i for i in free if shape[i] % mesh.shape["fsdp"] == 0]
        if whole:
            cuts[max(whole, key=lambda i: shape[i])] = "fsdp"
    return P(*cuts)
