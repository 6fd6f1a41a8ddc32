"""The devices that a function is compiled for. They decide which kernels its layers take.

By default these are the devices of the running backend. `compiling_for` names others, so that a step
can be compiled for a TPU on a machine that has none, and an export for all platforms.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias, get_args

import jax
from jax.sharding import Mesh

#: `"any"`: plain XLA operations, which every platform runs.
Platform: TypeAlias = Literal["cpu", "gpu", "tpu", "any"]

#: JAX's names of platforms that take the kernels of another.
_SAME: dict[str, Any] = {"cuda": "gpu", "rocm": "gpu"}


@dataclasses.dataclass(frozen=True)
class Cut:
    """How the arrays of a function lie over several devices, for kernels that XLA cannot cut by itself.

    Attributes:
        mesh: the devices.
        rows: axes of the mesh that cut the rows of a batch.
        heads: axis of the mesh that cuts the heads of an attention.
    """

    mesh: Mesh
    rows: tuple[str, ...]
    heads: str

    @property
    def row_shards(self) -> int:
        """The number of pieces into which the rows are cut."""
        return math.prod(self.mesh.shape[axis] for axis in self.rows)


@dataclasses.dataclass(frozen=True)
class Target:
    """The devices that a function is compiled for.

    Attributes:
        platform: which kernels there are.
        kind: kind of device as JAX names it, e.g. `"TPU v5 lite"`; `""` for platform `"any"`.
        cut: how arrays lie over several devices; `None` for a function of one device.

    Raises:
        ValueError: the platform is unknown.
    """

    platform: Platform
    kind: str = ""
    cut: Cut | None = None

    def __post_init__(self) -> None:
        if self.platform not in get_args(Platform):
            known = ", ".join(get_args(Platform))
            raise ValueError(f"platform {self.platform!r} is none of {known}")

    @classmethod
    def of(cls, device: Any) -> "Target":
        """The target of a JAX device, which may be one that is compiled for and not there."""
        return cls(_SAME.get(device.platform, device.platform), device.device_kind)


#: For exports.
PORTABLE = Target("any")

# JAX keeps its value in the keys of all its caches, those of `jax.jit` and of traces included. So a
# function that was traced for one target is traced again for another.
_chosen = jax.make_user_context(None)


def current() -> Target:
    """The target of the code that is being traced."""
    chosen = _chosen.value
    return Target.of(jax.local_devices()[0]) if chosen is None else chosen


@contextlib.contextmanager
def compiling_for(target: Target) -> Iterator[None]:
    """Makes layers take the kernels of `target` in all that is traced inside.

    A function that `jax.jit` has traced for another target is traced again.
    """
    with _chosen(target):
        yield
