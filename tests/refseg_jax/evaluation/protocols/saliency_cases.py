"""Small maps and ground truths with all edge cases, for comparisons with other code."""

import itertools
from collections.abc import Iterator

import numpy as np

from refseg_jax.evaluation.protocols.saliency import SaliencyEntry, saliency_sums

Case = tuple[np.ndarray, np.ndarray]


def maps(rng: np.random.Generator, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    low, high = np.sort(rng.integers(0, 256, 2))
    yield rng.integers(0, 256, shape)
    yield rng.integers(low, high + 1, shape)
    yield np.where(rng.random(shape) < 0.5, low, high)
    yield np.where(rng.random(shape) < 0.5, 0, 255)
    yield np.full(shape, rng.choice([0, 1, 254, 255, low]))


def targets(rng: np.random.Generator, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    one = np.zeros(shape, bool)
    one[rng.integers(shape[0]), rng.integers(shape[1])] = True
    edges = np.zeros(shape, bool)
    edges[-1], edges[:, -1] = rng.random() < 0.7, rng.random() < 0.7
    yield from (one, ~one, edges, np.zeros(shape, bool), np.ones(shape, bool))
    yield from (rng.random(shape) < share for share in (0.2, 0.5, 0.9))


def cases(rounds: int, largest: int = 6) -> Iterator[Case]:
    rng = np.random.default_rng(7)
    for _ in range(rounds):
        shape = (int(rng.integers(1, largest + 1)), int(rng.integers(1, largest + 1)))
        for values, target in itertools.product(maps(rng, shape), list(targets(rng, shape))):
            yield values.astype(np.uint8), target


def sums(entries: list[SaliencyEntry]) -> dict[str, int]:
    """Sums of entries, as the state of a protocol adds them up."""
    added = [saliency_sums(entry) for entry in entries]
    return {name: sum(one[name] for one in added) for name in added[0]} | {"count": len(added)}
