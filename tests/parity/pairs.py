"""A JAX model and its torch twin with the same parameters, and batches for both."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

from refseg_jax.batch import Batch
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.models.unires import UniRES
from tests.parity.torch_loading import load_parameters
from tests.parity.torch_unires import TorchUniRES

Params = dict[str, Any]


def random_parameters(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
    """Random parameters without zeros and ones, which would hide a missing or exchanged parameter.

    `Forward.init` makes a dict of the same form, but its compilation would take longer than the test.
    """
    rng = np.random.default_rng(0)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        normal = rng.standard_normal(shape, np.float32)
        if len(shape) == 1:
            return 0.1 * normal + np.float32(path.endswith("scale"))
        if not path.endswith("kernel"):
            return 0.1 * normal
        # The kernel that is made from the sentence starts small, as in the model.
        share = 0.03 if path == "head.text.kernel" else 0.5
        return normal * np.float32(share * math.prod(shape[:-1]) ** -0.5)

    return {path: draw(path, leaf.shape) for path, leaf in shapes.items()}


class Pair(NamedTuple):
    """A JAX model, its parameters, and the torch twin (without dropout) with the same ones."""

    forward: Forward[UniRES]
    params: Params
    twin: TorchUniRES


def make_pair(fields: dict[str, Any]) -> Pair:
    forward: Forward[UniRES] = Forward(lambda rngs: build_model(fields, rngs=rngs))  # pyright: ignore
    params = random_parameters(forward.shapes)
    with torch.device("meta"):
        twin = TorchUniRES(forward.model.config)
    twin = twin.to_empty(device="cpu").eval()
    load_parameters(twin, params)
    return Pair(forward, params, twin)


def make_batch(forward: Forward[UniRES], rows: int, ends: list[int], length: int) -> Batch:
    """Random rows; text k of every row has its EOS at `ends[k]` and padding after it."""
    config = forward.model.config
    rng = np.random.default_rng(1)
    place, end = np.arange(length), np.array(ends)[:, None]
    text = rng.integers(1, config.eos_id, (rows, len(ends), length))
    text = np.where(place < end, text, np.where(place == end, config.eos_id, 0))
    cells = config.image_size // config.mask_stride
    pairs = (rows, 1, len(ends))
    return Batch(
        image=rng.integers(0, 256, (rows, 1, config.image_size, config.image_size, 3), np.uint8),
        text=text.astype(np.int32),
        text_valid=np.broadcast_to(place <= end, text.shape),
        mask=rng.integers(0, 256, (*pairs, cells, cells), np.uint8),
        present=np.ones(pairs, bool),
        valid=np.ones(pairs, bool),
        size=np.full((rows, 1, 2), config.image_size, np.int32),
        affine=np.zeros((rows, 1, 2, 3), np.float32),
    )


def as_torch(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The arguments of the twin: image, text and text_valid."""
    return (
        torch.from_numpy(np.array(batch.image)[:, 0]),
        torch.from_numpy(np.array(batch.text)).long(),
        torch.from_numpy(np.array(batch.text_valid)),
    )
