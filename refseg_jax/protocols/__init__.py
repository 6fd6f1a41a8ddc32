"""The published evaluations by name: see docs/protocols.md."""

from collections.abc import Mapping
from typing import Any

from refseg_jax import naming
from refseg_jax.errors import UserError
from refseg_jax.protocols.base import Counts, Pair, Protocol, Reads, Regions, State
from refseg_jax.protocols.categories import Part, Semseg
from refseg_jax.protocols.expressions import Cris, Lavt, RefCOCOm
from refseg_jax.protocols.grd import Grd
from refseg_jax.protocols.gres import Gres, GresPaper
from refseg_jax.protocols.rvos import Rvos
from refseg_jax.protocols.sod import Sod

#: Every protocol, by the name that configs and `tools.score` use.
PROTOCOLS: Mapping[str, type[Protocol]] = {
    protocol.name: protocol
    for protocol in (Cris, Lavt, Gres, GresPaper, RefCOCOm, Grd, Semseg, Part, Sod, Rvos)
}

__all__ = [
    "PROTOCOLS",
    "Counts",
    "Pair",
    "Protocol",
    "Reads",
    "Regions",
    "State",
    "build_protocol",
]


def build_protocol(name: str, **options: Any) -> Protocol:
    """A protocol by name.

    Args:
        name: out of `PROTOCOLS`.
        options: fields of its dataclass, e.g. `min_pixels=50`.

    Raises:
        UserError: an unknown name, or an option that the protocol does not have.
    """
    try:
        return naming.from_mapping(PROTOCOLS, {"name": name, **options}, what="protocol")
    except ValueError as error:
        raise UserError(str(error)) from None
