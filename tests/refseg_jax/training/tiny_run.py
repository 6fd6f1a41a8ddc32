"""Very small models on the tiny dataset, for the tests of whole runs."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from input_pipeline import pipeline
from input_pipeline.schema import Record
from refseg_jax import sharding
from refseg_jax.batch import Batch, SegOutput
from refseg_jax.checkpoints.checkpointer import Checkpointer
from refseg_jax.evaluation.evaluator import Evaluator
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.text.tokenizers import build_tokenizer
from tests.input_pipeline.tiny_dataset import COLOURS, build_tiny_dataset, make_record
from tests.refseg_jax.models.micro import FIELDS

#: UniRES with CLIP's vocabulary, which the words of the dataset need; small, to compile fast.
UNIRES: dict[str, Any] = {
    "name": "unires",
    **FIELDS,
    "vocab_size": 49408,
    "eos_id": 49407,
    "decoder_layers": 1,
    "head": "linear",
}
WITH_PRESENCE: dict[str, Any] = {**UNIRES, "presence_head": True}
IMAGE_SIZE, MASK_STRIDE = 32, 2
CANVAS = (64, 64)
#: Height and width of the images of `val`, all different.
SIZES = ((32, 32), (24, 40), (40, 24), (33, 31), (64, 17), (48, 64))


class ColourModel(nnx.Module):
    """A model that compiles fast: logits are products of words' parameters and cells' colours."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.liked = nnx.Param(jax.random.normal(rngs.params(), (49408, 3)))

    def __call__(self, batch: Batch, *, rngs: Any = None) -> SegOutput:
        colours = jnp.asarray(batch.image, jnp.float32) / 127.5 - 1.0
        b, n, height, width, _ = colours.shape
        cells = colours.reshape(b, n, height // 2, 2, width // 2, 2, 3).mean((3, 5))
        words = self.liked[...][batch.text] * jnp.asarray(batch.text_valid)[..., None]
        return SegOutput(jnp.einsum("bnhwc,bkc->bnkhw", cells, words.sum(2)) - 1.0)


def colour_forward() -> Forward[ColourModel]:
    return Forward(ColourModel)


def random_params(forward: Forward, seed: int = 0) -> dict[str, jax.Array]:
    """Random parameters, scaled so that masks are neither empty nor full."""
    rng = np.random.default_rng(seed)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.standard_normal(shape, np.float32)
        if path.endswith("variance"):
            return 0.5 + np.abs(values)
        if len(shape) < 2:
            return 0.1 * values + float(path.endswith("scale"))
        fan_in = 1 if path.endswith(("embedding", "liked")) else np.prod(shape[:-1])
        return values / np.float32(np.sqrt(fan_in))

    drawn = {path: draw(path, leaf.shape) for path, leaf in forward.shapes.items()}
    return jax.tree.map(jnp.asarray, drawn)


def presence_params(bias: float) -> dict[str, jax.Array]:
    """Parameters of `WITH_PRESENCE`: those of `UNIRES`, and a random head with logits around `bias`."""
    plain, headed = (
        random_params(Forward(lambda rngs, model=model: build_model(model, rngs=rngs)))
        for model in (UNIRES, WITH_PRESENCE)
    )
    return {**headed, **plain, "presence.down.bias": jnp.full(1, bias)}


def colour_params(forward: Forward[ColourModel]) -> dict[str, jax.Array]:
    """Parameters that fit the words of colours and are random for others: some masks are right."""
    liked = 0.3 * random_params(forward)["liked"]
    ids, _ = build_tokenizer()(list(COLOURS), 3)
    for word, (red, green, blue) in zip(ids[:, 1], COLOURS.values(), strict=True):
        liked = liked.at[word].set(jnp.array([red, green, blue]) / 50.0 - 2.0)
    return {"liked": liked}


def build_many_sizes(data_dir: Path) -> None:
    """Builds the tiny dataset with a split `val` of images of `SIZES`, with 6 expressions each."""

    def resized(record: Record) -> Record:
        number = int(record.image_id.removeprefix("val"))
        return make_record("val", number, SIZES[number])

    build_tiny_dataset(data_dir, {"val": len(SIZES)}, change=resized)


def data_config(data_dir: Path, split: str = "val", **changes: Any) -> pipeline.PipelineConfig:
    fields: dict[str, Any] = {
        "pairs": 4,
        "granularities": ("object", "part", "multi", "none"),
        "context_length": 10,
        "canvas": CANVAS,
        **changes,
    }
    return pipeline.PipelineConfig(str(data_dir), "tiny", split, IMAGE_SIZE, MASK_STRIDE, **fields)


def make_evaluator(
    data_dir: Path, forward: Forward, batch_size: int = 4, **changes: Any
) -> Evaluator:
    """An evaluator of the split `val`; `changes` replace its fields."""
    config = data_config(data_dir)
    fields: dict[str, Any] = {
        "name": "val",
        "forward": forward,
        "batches": lambda: pipeline.eval_batches(config, batch_size=batch_size),
        "mesh": one_device(),
        "mask_stride": MASK_STRIDE,
        "canvas": CANVAS,
        "threshold": 0.35,
        **changes,
    }
    return Evaluator(**fields)


def one_device() -> jax.sharding.Mesh:
    return sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])


def unires_run_config(threshold: float = 0.35, model: dict[str, Any] = UNIRES) -> dict[str, Any]:
    """The part of a run's config that a predictor reads."""
    return {
        "model": dict(model),
        "data": {"resize": "letterbox", "context_length": 10, "tokenizer": "clip"},
        "eval": {"threshold": threshold},
    }


def save_unires(
    workdir: Path,
    params: dict[str, jax.Array],
    threshold: float = 0.35,
    config: dict[str, Any] | None = None,
    step: int = 1,
) -> None:
    """Saves a checkpoint of an untrained UniRES; a `config` that does not fit makes it a damaged one."""
    config = unires_run_config(threshold) if config is None else config
    saver = Checkpointer(workdir / "checkpoints", keep_latest=1)
    state = {"step": jnp.int32(step), "params": params}
    saver.save(step, state, data_state={}, config=config, metrics=None)
    saver.close()
