"""Memory of an evaluation over every class: it does not grow with the number of classes.

Measured by XLA's own analysis of the compiled program (`memory_analysis`), at 480, with two images and a
canvas of 640 x 640 on this CPU: what the program holds beside its arguments and outputs. With 8 classes
at once, UniRES-B/16 takes 1,471 MiB for 8 classes, and 1,488 MiB for 59 and for 150. 150 at once would
take 12,757 MiB. For 150, UniLSeg-B takes 2,484 MiB in its form `paper`, and 2,500 MiB in `official`.
"""

import jax
import numpy as np
import pytest

from refseg_jax import sharding
from refseg_jax.batch import Batch
from refseg_jax.evaluation.every_class import ClassEvaluator
from refseg_jax.evaluation.protocols import EveryClass
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward

SIDE = 480
MODELS = {
    "unires": {"name": "unires", "preset": "B/16", "image_size": SIDE},
    "unilseg-paper": {"name": "unilseg", "preset": "B", "form": "paper", "image_size": SIDE},
    "unilseg-official": {"name": "unilseg", "preset": "B", "form": "official", "image_size": SIDE},
}
ROWS, CANVAS, LENGTH = 2, (640, 640), 17


@pytest.mark.bench
@pytest.mark.parametrize("model", MODELS)
def test_memory_does_not_grow_with_the_classes(model: str) -> None:
    forward = Forward(lambda rngs: build_model(MODELS[model], rngs=rngs))
    found = {
        (classes, at_once): _temporary(forward, classes, at_once)
        for classes, at_once in ((8, 8), (59, 8), (150, 8), (150, 150))
    }
    print(f"\n{model}, B at {SIDE}, {ROWS} images, canvas {CANVAS[0]} x {CANVAS[1]}:")
    print("classes  at once  memory of the program")
    for (classes, at_once), size in found.items():
        print(f"{classes:7}  {at_once:7}  {size / 2**20:8.0f} MiB")
    # Of 8 classes, the loop has a single step, which is compiled without a loop.
    assert found[150, 8] < 1.01 * found[59, 8]
    assert found[150, 8] < 1.05 * found[8, 8]
    assert found[150, 8] < found[150, 150] / 8


def _temporary(forward: Forward, classes: int, at_once: int) -> int:
    """Bytes that the compiled program of a batch holds beside its arguments and outputs."""
    side, stride = SIDE, 4
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    evaluator = ClassEvaluator(
        "val", forward, None, None, mesh, stride, CANVAS, 0.5, EveryClass(), at_once  # pyright: ignore
    )  # fmt: skip
    shape = jax.ShapeDtypeStruct
    chunks = -(-classes // at_once)
    words = (chunks, 1, at_once, LENGTH)
    texts = jax.eval_shape(
        evaluator._encoded, forward.shapes, shape(words, np.int32), shape(words, np.bool_)
    )
    cells = side // stride
    batch = Batch(
        image=shape((ROWS, 1, side, side, 3), np.uint8),  # pyright: ignore[reportArgumentType]
        text=shape((ROWS, 1, LENGTH), np.int32),  # pyright: ignore[reportArgumentType]
        text_valid=shape((ROWS, 1, LENGTH), np.bool_),  # pyright: ignore[reportArgumentType]
        mask=shape((ROWS, 1, 1, cells, cells), np.uint8),  # pyright: ignore[reportArgumentType]
        present=shape((ROWS, 1, 1), np.bool_),  # pyright: ignore[reportArgumentType]
        valid=shape((ROWS, 1, 1), np.bool_),  # pyright: ignore[reportArgumentType]
        size=shape((ROWS, 1, 2), np.int32),  # pyright: ignore[reportArgumentType]
        affine=shape((ROWS, 1, 2, 3), np.float32),  # pyright: ignore[reportArgumentType]
        labels=shape((ROWS, 1, *CANVAS), np.int16),  # pyright: ignore[reportArgumentType]
    )
    compiled = evaluator._compiled
    lowered = compiled.lower(forward.shapes, batch, texts, classes, False)  # pyright: ignore
    return lowered.compile().memory_analysis().temp_size_in_bytes
