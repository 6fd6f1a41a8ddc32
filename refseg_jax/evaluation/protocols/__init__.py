"""The published evaluations by name: see docs/protocols.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from refseg_jax import naming
from refseg_jax.batch import GRANULARITIES
from refseg_jax.errors import UserError
from refseg_jax.evaluation.protocols.base import Counts, Pair, Protocol, Reads, Regions, State
from refseg_jax.evaluation.protocols.categories import Background, EveryClass, Part, Semseg
from refseg_jax.evaluation.protocols.expressions import Cris, Lavt, RefCOCOm
from refseg_jax.evaluation.protocols.grd import Grd
from refseg_jax.evaluation.protocols.gres import Gres, GresPaper
from refseg_jax.evaluation.protocols.gseval import GsEval
from refseg_jax.evaluation.protocols.pbench import Pbench
from refseg_jax.evaluation.protocols.rvos import Rvos
from refseg_jax.evaluation.protocols.saco import Saco
from refseg_jax.evaluation.protocols.sod import Sod

#: Every protocol, by the name that configs and `tools.score` use.
PROTOCOLS: Mapping[str, type[Protocol]] = {
    protocol.name: protocol
    for protocol in (
        Cris,
        Lavt,
        Gres,
        GresPaper,
        RefCOCOm,
        Grd,
        EveryClass,
        Semseg,
        Part,
        Sod,
        Rvos,
        Saco,
        Pbench,
        GsEval,
    )
}

__all__ = [
    "PROTOCOLS",
    "Counts",
    "EveryClass",
    "Pair",
    "Protocol",
    "Reads",
    "Regions",
    "State",
    "build_protocol",
    "build_protocols",
    "keyed_counts",
    "keyed_scores",
]


def build_protocol(name: str, **options: Any) -> Protocol:
    """Builds a protocol by name.

    Args:
        name: key of `PROTOCOLS`.
        options: fields of its dataclass, e.g. `min_pixels=50`.

    Raises:
        UserError: the name is unknown, or the protocol does not have an option.
    """
    try:
        return naming.from_mapping(PROTOCOLS, {"name": name, **options}, what="protocol")
    except ValueError as error:
        raise UserError(str(error)) from None


def build_protocols(
    names: str, *, min_pixels: int = 0, background: Background = "ignored"
) -> tuple[Protocol, ...]:
    """Builds several protocols by name.

    Args:
        names: names separated by commas, e.g. `"cris,gres"`.
        min_pixels: `Gres.min_pixels` of `gres` and `gres_paper`; 0 to follow the presence head.
        background: `EveryClass.background` of `every_class`.

    Raises:
        UserError: a name is unknown or occurs twice, `part` is not the first (its keys would be those
            of the granularity, `part/mIoU`), or no protocol takes `min_pixels` or `background`.
    """
    chosen = [name.strip() for name in names.split(",")]
    if len(set(chosen)) < len(chosen):
        raise UserError(f"protocol {names!r} names one twice")
    if background != "ignored" and EveryClass.name not in chosen:
        raise UserError(f"background={background!r} is for every_class, not for {names}")
    protocols = [
        EveryClass(background) if name == EveryClass.name else build_protocol(name)
        for name in chosen
    ]
    for protocol in protocols[1:]:
        if protocol.name in GRANULARITIES:
            raise UserError(
                f"protocol {names!r}: put {protocol.name} first, where its keys are plain; as another "
                f"one they would be those of the granularity, {protocol.name}/{protocol.columns[0]}"
            )
    if min_pixels < 0:
        raise UserError(f"min_pixels={min_pixels}: give a number of pixels, or 0 for none")
    if min_pixels:
        counting = [isinstance(protocol, Gres) for protocol in protocols]
        if not any(counting):
            raise UserError(f"min_pixels={min_pixels} is for gres and gres_paper, not for {names}")
        protocols = [
            build_protocol(p.name, min_pixels=min_pixels) if counts else p
            for p, counts in zip(protocols, counting, strict=True)
        ]
    return tuple(protocols)


def keyed_scores(states: Sequence[State]) -> dict[str, float]:
    """Scores of several protocols; keys of all but the first begin with the protocol's name."""
    return _keyed([(state.protocol, state.compute()) for state in states])


def keyed_counts(states: Sequence[State]) -> dict[str, float]:
    """Numbers of scored pairs, with keys as in `keyed_scores`."""
    return _keyed([(state.protocol, state.counts()) for state in states])


def _keyed(found: Sequence[tuple[Protocol, Mapping[str, float]]]) -> dict[str, float]:
    return {
        f"{protocol.name}/{key}" if number else key: value
        for number, (protocol, values) in enumerate(found)
        for key, value in values.items()
    }
