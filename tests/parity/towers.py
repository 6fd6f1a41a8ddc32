"""Helpers for the parity tests of single towers: loading by a table, noise, and the worst error."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import torch

from refseg_jax.models.forward import Forward
from refseg_jax.weights.loader import Plan, load, plan
from refseg_jax.weights.readers import open_weights
from refseg_jax.weights.table import Table

M = TypeVar("M")

#: Greatest relative error in f32, of every token in every layer.
BAR = 1e-5


def loaded(
    path: Path, table: Callable[[Iterable[str]], Table], forward: Forward[M]
) -> tuple[dict[str, Any], Plan]:
    """Parameters of a tower from a file, and the plan; parameters that it does not write are zero."""
    weights = open_weights(path)
    found = plan(table(weights.shapes), weights.shapes, forward.shapes, name=weights.name)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = load(found, weights, dict.fromkeys(forward.shapes, here))
    blank = {path: np.zeros(forward.shapes[path].shape, np.float32) for path in found.unwritten}
    return {**params, **blank}, found


@torch.no_grad()
def scatter(model: torch.nn.Module) -> None:
    """Sets weights with which every mistake of a port shows: no norm is the identity, no bias zero."""
    for name, value in model.named_parameters():
        noise = torch.randn_like(value)
        if "norm" in name.lower() and name.endswith("weight"):
            value.copy_(1.0 + 0.2 * noise)
        elif "relative_position_bias_table" in name:
            value.copy_(noise)
        elif "embeddings.weight" in name or "projection" in name:
            # Inputs are small, so that the epsilon of a norm matters.
            value.copy_(0.02 * noise)
        elif value.ndim == 1:
            value.copy_(0.1 * noise)
        else:
            value.copy_(noise * value.shape[-1] ** -0.5)


def errors(ours: Sequence[Any], theirs: Sequence[torch.Tensor]) -> list[float]:
    """The error `|a - b| / |b|` of the worst token of each layer."""
    assert len(ours) == len(theirs)
    found = []
    for a, b in zip(ours, theirs, strict=True):
        a, b = np.asarray(a, np.float64), b.numpy().astype(np.float64)
        assert a.size == b.size
        a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, a.shape[-1])
        found.append(float(np.max(np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1))))
    return found
