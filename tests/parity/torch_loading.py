"""Reads JAX parameters, named by dotted paths, into torch modules with the same attributes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn


def load_parameters(model: nn.Module, params: Mapping[str, Any]) -> None:
    """Copies a flat dict of JAX parameters (`Forward.init`) into a twin, or into a part of it.

    Raises:
        KeyError: the dict lacks a parameter of the twin.
        ValueError: a parameter has another shape, or the twin does not have it.
    """
    unread = dict(params)

    def take(path: str) -> torch.Tensor:
        return torch.from_numpy(np.array(unread.pop(path)))

    for name, module in model.named_modules():
        prefix = name.removesuffix("_proj") + "." if name else ""
        for attribute, parameter in module.named_parameters(recurse=False):
            value = _read(module, attribute, prefix, take)
            if value.shape != parameter.shape:
                raise ValueError(f"{prefix}{attribute}: {value.shape}, not {parameter.shape}")
            parameter.data.copy_(value)
    if unread:
        raise ValueError(f"no place for {', '.join(unread)}")


def _read(module: nn.Module, attribute: str, prefix: str, take: Any) -> torch.Tensor:
    """One parameter of a torch module in torch's layout, from the JAX model's path for it."""
    if attribute.startswith("in_proj"):
        leaf = "kernel" if attribute == "in_proj_weight" else "bias"
        packed = torch.cat(
            [take(f"{prefix}{part}.{leaf}") for part in ("query", "key", "value")], -1
        )
        return packed.T if leaf == "kernel" else packed
    if attribute != "weight":
        return take(prefix + attribute)
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        return take(prefix + "scale")
    if isinstance(module, nn.Embedding):
        return take(prefix + "embedding")
    kernel = take(prefix + "kernel")
    if not isinstance(module, nn.Conv2d):
        return kernel.T
    return kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T[:, :, None, None]
