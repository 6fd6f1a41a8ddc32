"""Devices to compile for: their names, the environment that the compiler needs, and the devices."""

import dataclasses
import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from refseg_jax.errors import UserError
from refseg_jax.naming import unknown

#: Kind of TPU -> the smallest topology of a whole host, in chips along each axis of the network.
TPUS = {"v4": "2x2x1", "v5e": "2x2", "v5p": "2x2x1", "v6e": "2x2", "tpu7x": "2x2x1"}
#: The devices of this machine.
LOCAL = "local"
_KINDS = (*TPUS, "cpu", LOCAL)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices that are joined by a fast network.

    Attributes:
        name: as on the command line, e.g. `v5e:4x4`.
        slices: how many of them a slower network joins.
    """

    name: str
    slices: int = 1

    @property
    def kind(self) -> str:
        """One of `TPUS`, `cpu`, or `LOCAL`."""
        return self.name.partition(":")[0]

    def environment(self, outer: Mapping[str, str]) -> dict[str, str]:
        """The variables of a process that compiles for these devices.

        Args:
            outer: those of this process.

        Raises:
            UserError: the compiler for TPUs is not installed.
        """
        inner = dict(outer)
        if self.kind == "cpu":
            inner["JAX_PLATFORMS"] = "cpu"
            count = self.name.partition(":")[2]
            # The last of several wins.
            forced = f"--xla_force_host_platform_device_count={count}"
            inner["XLA_FLAGS"] = f"{inner.get('XLA_FLAGS', '')} {forced}".strip()
        elif self.kind in TPUS:
            inner["JAX_PLATFORMS"] = "cpu"
            inner["TPU_LIBRARY_PATH"] = _library(self.name)
            # Else it asks the cloud which TPU this machine has, and locks the library for one process.
            inner |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        return inner

    def devices(self) -> list[Any]:
        """The devices, in a process with that environment.

        Raises:
            UserError: there is no such topology.
        """
        if self.kind not in TPUS:
            return list(jax.devices())
        options: dict[str, Any] = {"num_slices": self.slices} if self.slices > 1 else {}
        if self.kind == "v4":
            # The two cores of a chip as one device, as they are on machines with a v4.
            options["chip_config_name"] = "megacore"
        try:
            found = topologies.get_topology_desc(self.name, "tpu", **options)
        except jax.errors.JaxRuntimeError as error:
            whole = TPUS[self.kind]
            raise UserError(
                f"there is no such topology ({_first_line(error)}); take a multiple of a host's {whole} "
                "along each axis"
            ) from error
        return list(found.devices)


def parse(text: str, slices: int) -> list[Topology]:
    """The topologies of the flags `--topology` and `--slices`.

    Raises:
        UserError: a name is unknown or malformed.
    """
    if slices < 1:
        raise UserError(f"--slices={slices}: give 1 or more")
    return [_parsed(name.strip(), slices) for name in text.split(",")]


def _parsed(name: str, slices: int) -> Topology:
    kind, _, shape = name.partition(":")
    if kind not in _KINDS:
        # Every other name may be that of a GPU.
        tpu = kind.startswith(("v", "tpu"))
        cure = "" if tpu else f"; for GPUs, give {LOCAL} on a machine that has them"
        raise UserError(f"--topology={name}: {unknown('kind of device', kind, _KINDS)}{cure}")
    if kind in TPUS:
        sound = re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape)
        if not sound or shape.count("x") != TPUS[kind].count("x"):
            raise UserError(
                f"--topology={name}: give the chips along each axis of the network, e.g. "
                f"{kind}:{TPUS[kind]}"
            )
    elif slices > 1:
        raise UserError(f"--topology={name} --slices={slices}: only TPUs have slices")
    elif not re.fullmatch(r"[1-9]\d*" if kind == "cpu" else "", shape):
        raise UserError(f"--topology={name}: give {LOCAL}, or cpu and a number, e.g. cpu:8")
    return Topology(name, slices)


def _library(name: str) -> str:
    found = importlib.util.find_spec("libtpu")
    if found is None or not found.origin:
        version = importlib.metadata.version("jax")
        raise UserError(
            f"--topology={name}: the compiler for TPUs is not installed (libtpu, for Linux); install it "
            f"with: pip install 'jax[tpu]=={version}'"
        )
    return str(Path(found.origin).with_name("libtpu.so"))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
