"""Where arrays live: the mesh, the table of parameter layouts, and batches across processes.

The mesh has three axes: `data` (cuts the batch), `fsdp` (cuts the batch, and each parameter along
one dimension) and `tensor` (cuts attention heads and MLP widths). An ordered table of regular
expressions over dotted parameter paths gives the layout of each parameter: the first match wins,
and the table must cover every path.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from refseg_jax.layers.target import Cut, compiling_for, current

T = TypeVar("T")

AXES = ("data", "fsdp", "tensor")
_BATCH_AXES = ("data", "fsdp")

#: `"replicate"`, `"fsdp"` (the largest dimension that the `fsdp` axis divides is cut), or
#: `"tensor:-1"`: the `tensor` axis cuts this dimension (here the last), and `fsdp` cuts another.
Layout: TypeAlias = str

#: Smaller parameters (in elements) are replicated: cutting them saves less than the gathers cost.
_SMALLEST_CUT = 2**10

#: Megatron's rule: the first projection of a pair is cut by output, the second by input, so that a
#: pair costs one all-reduce. Everything else follows `fsdp` alone.
DEFAULT_LAYOUTS: tuple[tuple[str, Layout], ...] = (
    (r".*\.(query|key|value|up)\.kernel", "tensor:-1"),
    (r".*\.(query|key|value|up)\.bias", "tensor:-1"),
    (r".*\.(out|down)\.kernel", "tensor:-2"),
    (r".*", "fsdp"),
)


def this_process() -> dict[str, int]:
    """`process_index` and `process_count`, as arguments of what gives each process its rows."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes in devices; one of them may be -1, for all remaining devices."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A `(data, fsdp, tensor)` mesh over all devices, with Auto axes.

    Neighbours in the mesh are neighbours in the network. Slices (of TPUs, or hosts with GPUs) are
    joined by a slower one, over which the axis `data` runs as far as it goes, then `fsdp`.

    Args:
        config: sizes of the axes.
        devices: the devices; all devices of all processes by default.

    Raises:
        ValueError: the product of the sizes is not the number of devices, processes would share
            rows of the batch, or the axis `tensor` would run over the slow network between slices.
    """
    devices = list(jax.devices()) if devices is None else list(devices)
    sizes = [config.data, config.fsdp, config.tensor]
    known = int(np.prod([s for s in sizes if s != -1]))
    rest = len(devices) // known if known > 0 else 0
    if sizes.count(-1) > 1 or known * (rest if -1 in sizes else 1) != len(devices):
        raise ValueError(
            f"mesh {dict(zip(AXES, sizes, strict=True))}: the product must be the number of devices, "
            f"which is {len(devices)}; set config.mesh.{{{','.join(AXES)}}}, one of which may be -1 "
            "(all that remain)"
        )
    sizes = [rest if s == -1 else s for s in sizes]
    mesh = Mesh(_placed(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    if batch_shards(mesh) % jax.process_count():
        raise ValueError(
            f"mesh {dict(mesh.shape)} over {jax.process_count()} processes: each must have rows of "
            "its own, so data * fsdp must be a multiple of their number; make tensor smaller"
        )
    return mesh


def replicated(mesh: Mesh) -> NamedSharding:
    """The layout of arrays of which every device holds a full copy."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The layout of a batch: rows cut over `data` and `fsdp`."""
    return NamedSharding(mesh, P(_BATCH_AXES))


@contextlib.contextmanager
def tracing_over(mesh: Mesh) -> Iterator[None]:
    """Tells layers that are traced inside how their arrays lie; decorates functions, too.

    Kernels that XLA cannot cut over devices cut themselves, see `refseg_jax.layers.target.Cut`.
    """
    cut = Cut(mesh, _BATCH_AXES, AXES[2])
    with compiling_for(dataclasses.replace(current(), cut=cut)):
        yield


def batch_shards(mesh: Mesh) -> int:
    """The number of pieces into which the rows of a batch are cut."""
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
        layouts: ordered (regular expression, layout) pairs; an expression must match the whole path.

    Raises:
        ValueError: no entry of the table matches a path, or a layout is unknown.
    """
    return {
        path: NamedSharding(mesh, _spec(path, leaf.shape, mesh, layouts))
        for path, leaf in shapes.items()
    }


def abstract_params(shapes: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype and default layout of every parameter, as loaders need them."""
    layouts = param_shardings(shapes, mesh)
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layouts[path])
        for path, leaf in shapes.items()
    }


def state_shardings(shapes: Any, params: Mapping[str, NamedSharding], mesh: Mesh) -> Any:
    """Layouts of a whole train state: optimiser moments and averages follow their parameters.

    Moments and averages are dictionaries with the keys of the parameters, so the last key of a leaf's
    path that is a parameter names the layout. All other leaves (counters) are replicated.

    Args:
        shapes: the state as a tree of leaves with a `.shape`.
        params: parameter path -> layout.
        mesh: the mesh.
    """

    def layout(tree_path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        for key in reversed(tree_path):
            name = str(getattr(key, "key", ""))
            if name in params and len(params[name].spec) <= len(leaf.shape):
                return params[name]
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(layout, shapes)


def put_batch(batch: T, mesh: Mesh) -> T:
    """Makes global arrays of the rows (numpy) of each process; their `B` is the global batch size.

    Args:
        batch: this process's rows: a `Batch`, or any tree of arrays whose first axis runs over rows.
        mesh: the mesh.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows, as numpy, of an array that is cut (or replicated) over its first axis."""
    rows: dict[int, np.ndarray] = {}
    for shard in array.addressable_shards:
        start = shard.index[0].start or 0 if shard.index else 0
        if start not in rows:
            rows[start] = np.asarray(shard.data)
    return np.concatenate([rows[start] for start in sorted(rows)])


def everywhere(value: bool) -> bool:
    """Whether `value` is true on all processes; a collective call that every process must make."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.int32(value))))


def _placed(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """The devices in an array of the given sizes; `jax.make_mesh` takes neither slices nor parts of
    a TPU's physical axes (2 x 8 of a v6e 4x4).
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    data, fsdp, tensor = sizes
    over_data = math.gcd(data, slices)
    over_fsdp = slices // over_data
    if fsdp % over_fsdp:
        raise ValueError(
            f"mesh {dict(zip(AXES, sizes, strict=True))} over {slices} slices: data * fsdp must be a "
            "multiple of their number; make tensor smaller"
        )
    inside = (data // over_data, fsdp // over_fsdp, tensor)
    return mesh_utils.create_hybrid_device_mesh(
        inside, (over_data, over_fsdp, 1), devices, allow_split_physical_axes=True
    )


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
