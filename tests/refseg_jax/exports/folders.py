"""Exports of a very small UniRES, for the tests that read them."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from refseg_jax.checkpoints import manifest
from refseg_jax.exports import folder as exports_folder
from refseg_jax.exports.exporter import FORMATS, export
from refseg_jax.exports.folder import ExportConfig
from refseg_jax.exports.source import Source
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward, Params
from refseg_jax.models.graphs import forward_of
from refseg_jax.prediction.engines import Engine, ParameterEngine
from refseg_jax.prediction.painting import Prediction
from refseg_jax.prediction.stablehlo import StablehloEngine
from refseg_jax.text.anti import anti_text
from tests.refseg_jax.training.tiny_run import (
    UNIRES,
    WITH_PRESENCE,
    presence_params,
    random_params,
    save_unires,
    unires_run_config,
)

THRESHOLD = 0.6
TEXTS = ["the red box", "both boxes", "the lid"]


def tiny_params() -> Params:
    return random_params(Forward(lambda rngs: build_model(UNIRES, rngs=rngs)))


def write_all(folder: Path, *formats: str, presence: bool = False) -> Params:
    """Writes a run with a checkpoint to `folder / "run"`, and an export to the folder of each format.

    With `presence`, the model has a presence head. Returns its parameters.
    """
    params = presence_params(-0.32) if presence else tiny_params()
    model = WITH_PRESENCE if presence else UNIRES
    save_unires(folder / "run", params, config=unires_run_config(THRESHOLD, model))
    for name in formats:
        export(folder / "run", name, folder / name, command=["make", "it"])
    return params


def written_graphs(
    target: Path, model: dict[str, Any], length: int
) -> tuple[StablehloEngine, ParameterEngine]:
    """Graphs of a model of random numbers for texts of this length, and the model."""
    params = jax.tree.map(np.asarray, random_params(forward_of(model)))
    source = Source(params, model, {"context_length": length}, {}, "", 1, {})
    written = FORMATS["stablehlo"](target, source)
    config = ExportConfig("stablehlo", model, source.data, {}, 1, {}, written.graphs)
    exports_folder.write_config(target, config)
    graphs = StablehloEngine(target, exports_folder.read_config(target))
    engine = ParameterEngine(params, model)
    assert (graphs.image_size, graphs.mask_stride) == (engine.image_size, engine.mask_stride)
    return graphs, engine


@contextlib.contextmanager
def compiling_in_a_hurry() -> Iterator[None]:
    """Compiles with few optimisations in the `with` block, for functions that run once."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@contextlib.contextmanager
def compiling_once(cache: Path) -> Iterator[None]:
    """Keeps compilations of the `with` block in a folder, where other predictors find them."""
    changes = {
        "jax_compilation_cache_dir": str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: getattr(jax.config, name) for name in changes}
    try:
        for name, value in changes.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def damaged(source: Path, target: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """Copies a folder, and changes the bytes of one file of the copy."""
    shutil.copytree(source, target)
    (target / name).write_bytes(change((target / name).read_bytes()))
    return target


def forged(source: Path, target: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """As `damaged`, with the digest of the changed file: as another hand would write it."""
    manifest.write(damaged(source, target, name, change))
    return target


def flip(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 33, 3), np.uint8)


def graph_inputs(
    batch: int, count: int, *, eos: int, length: int, side: int = 32, images: int | None = None
) -> dict[str, np.ndarray]:
    """Square images, and texts of different lengths; with `images`, groups and anti-expressions."""
    rng = np.random.default_rng(batch)
    ends = rng.integers(2, length, (batch, count, 1))
    place = np.arange(length)
    text = rng.integers(1, eos, (batch, count, length))
    inputs = {
        "image": rng.integers(0, 256, (batch, side, side, 3), np.uint8),
        "text": np.where(place < ends, text, np.where(place == ends, eos, 0)).astype(np.int32),
        "text_valid": place <= ends,
    }
    if images is not None:
        inputs["image"] = rng.integers(0, 256, (batch, images, side, side, 3), np.uint8)
        inputs["anti_text"] = anti_text(inputs["text"], inputs["text_valid"], eos + 1)
    return inputs


def engine_outputs(engine: Engine, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of all three functions of an engine."""
    seen = engine.encode_image(inputs["image"])
    names = ("text", "text_valid", "anti_text")
    words = engine.encode_text(*(inputs[name] for name in names if name in inputs))
    return {name: np.asarray(logits) for name, logits in engine.decode(seen, words).items()}


def engine_logits(engine: Engine, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """`mask_logits` of `engine_outputs`."""
    return engine_outputs(engine, inputs)["mask_logits"]


def same_answers(found: list[Prediction], expected: list[Prediction]) -> None:
    """Asserts that predictions agree up to rounding, and that the head gives both answers."""
    assert {one.present for one in expected} == {True, False}
    assert any(0.02 < one.mask.mean() < 0.98 for one in expected)
    for one, other in zip(found, expected, strict=True):
        assert one.present is other.present
        # Only logits within rounding of the threshold may differ.
        assert (one.mask != other.mask).mean() < 1e-3
        assert (one.uncleared != other.uncleared).mean() < 1e-3
        assert abs(one.score - other.score) < 1e-4


def one_line(error: Any, *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
