"""Scores every class on a layout of devices, and prints the scores as a JSON line.

`every_class_test` runs it in its own processes, because JAX counts devices when it starts:

    python -m tests.refseg_jax.evaluation.every_class_steps DATA FSDP [COORDINATOR COUNT ID]
"""

import json
import sys
from typing import Any

import jax
import numpy as np

from refseg_jax import sharding
from refseg_jax.batch import Batch, ClassList, HostBatch, RowMeta
from refseg_jax.evaluation.every_class import ClassEvaluator
from refseg_jax.evaluation.protocols import EveryClass
from refseg_jax.models.forward import Forward
from tests.refseg_jax.training.tiny_run import ColourModel

ROWS, SIDE, CANVAS, CLASSES = 8, 16, (24, 24), 5


def global_batch(number: int) -> Batch:
    """Random images and labels; the last row of the second batch is padding."""
    rng = np.random.default_rng(number)
    valid = np.ones((ROWS, 1, 1), bool)
    valid[-1] = number == 0
    size = rng.integers(8, 25, (ROWS, 1, 2), np.int32)
    inside = np.arange(CANVAS[0])[:, None] < size[..., 0, None, None]
    inside = inside & (np.arange(CANVAS[1]) < size[..., 1, None, None])
    labels = rng.integers(-1, CLASSES, (ROWS, 1, *CANVAS)).astype(np.int16)
    return Batch(
        image=rng.integers(0, 256, (ROWS, 1, SIDE, SIDE, 3), np.uint8),
        text=np.zeros((ROWS, 1, 4), np.int32),
        text_valid=np.zeros((ROWS, 1, 4), bool),
        mask=np.zeros((ROWS, 1, 1, 8, 8), np.uint8),
        present=np.zeros((ROWS, 1, 1), bool),
        valid=valid,
        size=size,
        affine=np.tile(np.eye(2, 3, dtype=np.float32) * 0.6, (ROWS, 1, 1, 1)),
        labels=np.where(inside, labels, np.int16(-1)),
    )


def main() -> None:
    """Scores two batches, and prints the scores."""
    data, fsdp = (int(a) for a in sys.argv[1:3])
    if len(sys.argv) > 3:
        jax.distributed.initialize(sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    mesh = sharding.make_mesh(sharding.MeshConfig(data, fsdp, 1))
    forward = Forward(ColourModel)
    shardings = sharding.param_shardings(forward.shapes, mesh)
    params = jax.jit(forward.init, out_shardings=shardings)(jax.random.key(0))
    share = ROWS // jax.process_count()
    mine = slice(share * jax.process_index(), share * (jax.process_index() + 1))

    def batches() -> Any:
        for number in range(2):
            rows: Batch = jax.tree.map(lambda x: x[mine], global_batch(number))
            metas = [
                RowMeta(f"{number}/{i}", (f"{number}/{i}",), ("",), ("",), ("",))
                for i in range(ROWS)[mine]
            ]
            yield HostBatch(rows, tuple(metas))

    ids = np.random.default_rng(9).integers(1, 900, (CLASSES, 4)).astype(np.int32)
    names = tuple(f"all {number}" for number in range(CLASSES))
    classes = ClassList(names, "category", ids, np.ones((CLASSES, 4), bool))
    evaluator = ClassEvaluator(
        "val", forward, lambda: classes, batches, mesh, 2, CANVAS, 0.5, EveryClass("class"), 2
    )
    print(json.dumps(evaluator.evaluate(params, 0)))


if __name__ == "__main__":
    main()
