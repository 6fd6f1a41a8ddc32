"""Trains a small model for a few steps on a layout of devices, and prints the result as a JSON line.

`distributed_test` runs it in its own processes, because JAX counts devices when it starts:

    python -m tests.refseg_jax.training.distributed_steps MODEL DATA FSDP TENSOR [COORDINATOR COUNT ID]
"""

import json
import sys
from typing import Any

import jax
import numpy as np

from refseg_jax import sharding
from refseg_jax.batch import Batch, HostBatch, RowMeta
from refseg_jax.evaluation.evaluator import Evaluator
from refseg_jax.evaluation.protocols import build_protocols
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.training.objectives import GroupObjective, MaskObjective, RelationObjective
from refseg_jax.training.optim import OptimConfig
from refseg_jax.training.state import Trainer
from tests.refseg_jax.models import small_grser, small_unilseg
from tests.refseg_jax.models.rela_test import SMALL

STEPS = 4
ROWS = 16
#: Images of a row, for a model of groups.
GROUP = 3
UNIRES: dict[str, Any] = {
    "name": "unires",
    "preset": "tiny",
    "image_size": 32,
    "patch_size": 8,
    "stem_width": 0,
    "head": "projector",
    "mask_stride": 4,
    "vision_width": 64,
    "vision_layers": 2,
    "text_layers": 1,
    "embedding_width": 32,
    "text_width": 32,
    "decoder_width": 32,
    "decoder_layers": 1,
    "decoder_hidden": 64,
    "low_tokens": 4,
    "high_tokens": 2,
    "vocab_size": 512,
    "eos_id": 511,
}
RELA: dict[str, Any] = {
    **SMALL,
    "swin_depths": (1, 1),
    "region_layers": 1,
    "mask_stride": 2,
    "vocab_size": 512,
    "eos_id": 511,
}
GRSER: dict[str, Any] = {
    **small_grser.SMALL,
    "vocab_size": 512,
    "eos_id": 511,
    "text_width": 64,
    "text_hidden": 128,
    "width": 32,
    "predictor_width": 32,
}
#: Every draw of training: of words, of blocks, of the order of experts. They are the same on any layout.
RANDOM: dict[str, Any] = {"text_dropout": 0.2, "drop_path": 0.3, "rank": "random"}
#: Learning rates at which rounding errors hardly grow: Adam makes full steps for tiny gradients too.
MODELS = {
    "unires": (UNIRES, MaskObjective(1.0, 1.0), 1e-3),
    "rela_official": ({**RELA, "relationship": "official"}, RelationObjective(), 1e-4),
    "rela_paper": ({**RELA, "relationship": "paper"}, RelationObjective(), 1e-4),
    "grser": (GRSER, GroupObjective(dice=1.0, schedule="constant"), 1e-4),
    "grser_random": (
        {**GRSER, **RANDOM},
        GroupObjective(dice=1.0, schedule="constant"),
        1e-4,
    ),
    "unilseg": (small_unilseg.SMALL, MaskObjective(1.0, 1.0), 1e-4),
}


def global_batch(step: int, images: int, side: int, cells: int) -> Batch:
    """A random batch, the same for every layout; images have `side` x `side` pixels, masks `cells`."""
    pairs = (ROWS, images, 2)
    rng = np.random.default_rng(step)
    text = rng.integers(1, 500, (ROWS, 2, 6), np.int32)
    text[:, :, -1] = 511
    return Batch(
        image=rng.integers(0, 256, (*pairs[:2], side, side, 3), np.uint8),
        text=text,
        text_valid=np.ones((ROWS, 2, 6), bool),
        mask=rng.integers(0, 256, (*pairs, cells, cells), np.uint8),
        present=np.random.default_rng([step, 1]).random(pairs) < 0.8,
        valid=rng.random(pairs) < 0.8,
        size=np.full((*pairs[:2], 2), side, np.int32),
        affine=np.tile(np.eye(2, 3, dtype=np.float32), (*pairs[:2], 1, 1)),
        native=rng.integers(0, 2, (*pairs, side, side), np.uint8),
        anti_text=np.roll(text, 1, -1),
    )


def main() -> None:
    """Trains the model, and prints the result."""
    model, objective, rate = MODELS[sys.argv[1]]
    data, fsdp, tensor = (int(a) for a in sys.argv[2:5])
    if len(sys.argv) > 5:
        jax.distributed.initialize(sys.argv[5], int(sys.argv[6]), int(sys.argv[7]))
    mesh = sharding.make_mesh(
        sharding.MeshConfig(data, fsdp, tensor), jax.devices()[: data * fsdp * tensor]
    )
    trainer = Trainer(
        Forward(lambda rngs: build_model(model, rngs=rngs)),
        objective,
        OptimConfig(lr=rate, warmup=0.0),
        steps=STEPS,
        mesh=mesh,
    )
    side, stride = model["image_size"], trainer.forward.model.mask_stride
    images = GROUP if model["name"] == "grser" else 1
    state, step = trainer.create(), trainer.compile_step()
    device = mesh.local_devices[0]
    held = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(state)
        for shard in leaf.addressable_shards
        if shard.device == device
    )
    share = ROWS // jax.process_count()
    mine = slice(share * jax.process_index(), share * (jax.process_index() + 1))
    losses = []
    for number in range(STEPS):
        rows = jax.tree.map(lambda x: x[mine], global_batch(number, images, side, side // stride))
        state, metrics = step(state, sharding.put_batch(rows, mesh))
        losses.append(float(metrics["loss"]))

    from refseg_jax.evaluation.counts import pair_counts
    from refseg_jax.images.resize import logits_on_canvas

    @jax.jit
    def count(params, batch: Batch) -> jax.Array:
        logits = trainer.forward.apply(params, batch).mask_logits
        canvas = logits_on_canvas(logits, batch.affine, stride, (side, side))
        return pair_counts(canvas, batch.native, batch.size, 0.35)

    rows = jax.tree.map(lambda x: x[mine], global_batch(99, images, side, side // stride))
    counts = sharding.local_rows(count(state.params, sharding.put_batch(rows, mesh)))
    metas = [
        RowMeta(
            str(i),
            ("",) * images,
            tuple(f"{i}-{pair}" for pair in range(2 * images)),
            ("a", "b"),
            ("object", "part") * images,
        )
        for i in range(ROWS)[mine]
    ]
    evaluator = Evaluator(
        "val",
        trainer.forward,
        lambda: [HostBatch(rows, tuple(metas))],
        mesh,
        mask_stride=stride,
        canvas=(side, side),
        threshold=0.35,
        protocols=build_protocols("cris,gres,lavt"),
    )
    scores = evaluator.evaluate(state.params, 0)
    whole = jax.jit(lambda params: params, out_shardings=sharding.replicated(mesh))
    averages = {
        path: np.asarray(leaf).tolist()
        for path, leaf in whole(state.params).items()
        if path in trainer.forward.statistics
    }
    found = {"losses": losses, "held": held, "counts": counts.tolist(), "scores": scores}
    print(json.dumps({**found, "averages": averages}))


if __name__ == "__main__":
    main()
