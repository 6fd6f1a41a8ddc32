"""Compiles a function, and measures what it needs and does."""

import dataclasses
import re
import time
from typing import Any

import jax

from refseg_jax.errors import UserError
from refseg_jax.layers.target import Target, compiling_for
from refseg_jax.training.peaks import peak_of
from tools.compile import costs, hlo
from tools.compile.costs import Moved
from tools.compile.works import Work

#: XLA's words for memory that is not there: needed and available.
_NEEDED = (
    re.compile(r"\(([\d.]+)([KMG]?)\) exceeds available HBM \(([\d.]+)([KMG]?)\)"),
    re.compile(r"Used ([\d.]+)([KMG]?) of ([\d.]+)([KMG]?) hbm", re.IGNORECASE),
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a compiled function needs and does; all of one device, unless it says otherwise.

    Attributes:
        name: of the function.
        device: kind of device as JAX names it.
        devices: number of devices.
        hosts: number of processes that feed them.
        mesh: axis -> number of devices along it.
        rows: B, rows of a batch of all devices.
        field: the config's field of `rows`.
        shape: (images, pairs, tokens) of a row.
        fits: whether the memory suffices; `None` if it has no known limit.
        state: bytes of parameters and optimiser.
        needed: bytes at the peak. If the function does not fit, what the compiler says; it may count
            temporaries alone.
        available: bytes that the compiler may use, `None` if it does not say.
        temporaries: bytes beside state, batch and results; as all that follow, `None` if the function
            does not fit.
        flops: arithmetic, in FLOP.
        traffic: bytes between the device's memory and its chip. For a device that is no TPU, it is
            `accessed`: XLA does not say what its caches hold.
        accessed: bytes that instructions read and write, as XLA counts them. On a TPU, most of them stay
            on the chip.
        arithmetic_seconds, memory_seconds: what these take at the device's peaks, at least; `None` for a
            device that `refseg_jax.training.peaks` does not have.
        moved: kind of collective -> number and bytes.
        endless: number of loops of unknown length, which are counted once.
        seconds: time that lowering and compilation took here.
    """

    name: str
    device: str
    devices: int
    hosts: int
    mesh: dict[str, int]
    rows: int
    field: str
    shape: tuple[int, int, int]
    fits: bool | None
    state: float
    needed: float | None
    available: float | None
    seconds: float
    temporaries: float | None = None
    flops: float | None = None
    traffic: float | None = None
    accessed: float | None = None
    arithmetic_seconds: float | None = None
    memory_seconds: float | None = None
    moved: dict[str, Moved] = dataclasses.field(default_factory=dict)
    endless: int = 0

    @property
    def step_seconds(self) -> float | None:
        """The shortest time that arithmetic and memory allow."""
        if self.arithmetic_seconds is None or self.memory_seconds is None:
            return None
        return max(self.arithmetic_seconds, self.memory_seconds)

    @property
    def images_per_second(self) -> float | None:
        """Images that all devices together can process a second at best."""
        seconds = self.step_seconds
        return self.rows * self.shape[0] / seconds if seconds else None

    @property
    def images_per_second_a_host(self) -> float | None:
        """Images that each host must deliver a second, so that its devices never wait at best."""
        images = self.images_per_second
        return None if images is None else images / self.hosts


def measure(work: Work, rows: int) -> tuple[Figures, str]:
    """Compiles a function for a number of rows.

    Returns:
        The figures, and the text of the compiled program (`""` if it does not fit).

    Raises:
        UserError: the model does not take the rows.
    """
    devices = list(work.mesh.devices.flat)
    told: dict[str, Any] = {
        "name": work.name,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "hosts": len({device.process_index for device in devices}),
        "mesh": dict(work.mesh.shape),
        "rows": rows,
        "field": work.field,
        "shape": work.shape,
        "state": float(work.state),
    }
    began = time.perf_counter()
    try:
        with compiling_for(Target.of(devices[0])):
            compiled = _lowered(work, rows).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed, available = out_of_memory(str(error))
        seconds = time.perf_counter() - began
        return Figures(**told, fits=False, needed=needed, available=available, seconds=seconds), ""
    seconds = time.perf_counter() - began
    text = compiled.as_text() or ""
    return Figures(**told, seconds=seconds, **_measured(compiled, text, devices[0])), text


def _lowered(work: Work, rows: int) -> jax.stages.Lowered:
    try:
        return work.lower(rows)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{work.name}: the model does not take rows of (images, pairs, context_length) = "
            f"{work.shape}: {error}"
        ) from error


def _measured(compiled: Any, text: str, device: Any) -> dict[str, Any]:
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    program = hlo.read(text)
    more_flops, more_traffic = costs.loop_factors(program)
    flops = cost["flops"] * more_flops
    accessed = cost["bytes accessed"] * more_traffic
    traffic = costs.memory_traffic(program) if device.platform == "tpu" else accessed
    needed = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    peak = peak_of(device.device_kind)
    arithmetic, moving = peak.seconds(flops, traffic) if peak else (None, None)
    available = _limit(device)
    # The compiler refuses a program that does not fit on a TPU, and on no other device.
    fits = True if device.platform == "tpu" else None
    if available is not None:
        fits = needed <= available
    return {
        "fits": fits,
        "needed": float(needed),
        "available": available,
        "temporaries": float(memory.temp_size_in_bytes),
        "flops": flops,
        "traffic": traffic,
        "accessed": accessed,
        "arithmetic_seconds": arithmetic,
        "memory_seconds": moving,
        "moved": costs.collectives(program),
        "endless": program.endless,
    }


def _limit(device: Any) -> float | None:
    """Bytes that a program may use on a device that is there."""
    try:
        limits = device.memory_stats() or {}
    except jax.errors.JaxRuntimeError:
        return None
    return limits.get("bytes_limit")


def out_of_memory(text: str) -> tuple[float | None, float | None]:
    """Bytes that are needed and available, out of XLA's error; `None` if it does not say."""
    for pattern in _NEEDED:
        if found := pattern.search(text):
            needed, unit, available, other = found.groups()
            return float(needed) * _UNITS[unit], float(available) * _UNITS[other]
    return None, None
