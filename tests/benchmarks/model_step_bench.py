"""The training step of UniRES B/16 at 416 in f32 on this CPU, compared with a plain torch twin.

Both sides take turns on an otherwise idle machine, each in its own process. The ratio is the median over
rounds of (torch's time / ours), above 1 if ours is faster. The row of a module is its forward and
backward pass alone, on inputs of the shapes that it has in the step.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from refseg_jax import sharding
from refseg_jax.batch import Batch
from refseg_jax.layers.positions import sine_positions_1d, sine_positions_2d
from refseg_jax.training.objectives import MaskObjective
from refseg_jax.training.optim import OptimConfig
from refseg_jax.training.state import Trainer
from tests.benchmarks.sides import Row, Run, report
from tests.parity import torch_unires
from tests.parity.pairs import Pair, as_torch, make_batch, make_pair

OPTIM = OptimConfig(lr=1e-5, warmup=0.0)


@pytest.mark.bench
@pytest.mark.parametrize("rows", [1, 2])
def test_training_step_of_unires_b16_at_416(rows):
    fields = {"name": "unires", "preset": "B/16"}
    print(f"\nUniRES B/16, {rows} image(s) of 416, {torch.get_num_threads()} threads")
    report(functools.partial(all_rows, fields, rows))


def all_rows(fields: dict[str, Any], rows: int) -> Iterator[Row]:
    """Yields the rows of the table; runs in both processes."""
    pair = make_pair(fields)
    pair = pair._replace(params=jax.device_put(pair.params))
    batch = make_batch(pair.forward, rows, ends=[9], length=17)
    for make in (whole_step, optimiser, towers, decoders):
        yield from make(pair, batch)


def make_trainer(pair: Pair) -> Trainer:
    mesh = sharding.make_mesh(sharding.MeshConfig())
    return Trainer(pair.forward, MaskObjective(), OPTIM, steps=1000, mesh=mesh)


def make_torch_optimizer(model: torch.nn.Module, config: OptimConfig = OPTIM) -> Callable[[], None]:
    """Clipping and AdamW as in `refseg_jax.training.optim`, with torch's fastest kernels."""
    parameters = list(model.parameters())
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    adamw = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=config.lr,
        fused=True,
    )

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm, foreach=True)
        adamw.step()

    return update


def whole_step(pair: Pair, batch: Batch) -> Iterator[Row]:
    trainer = make_trainer(pair)
    step = trainer.compile_step()
    state, placed = None, sharding.put_batch(batch, trainer.mesh)

    def ours() -> None:
        nonlocal state
        if state is None:
            # A copy, because the step consumes its state and other rows need these parameters.
            state = trainer.create_from(jax.tree.map(jnp.copy, pair.params))
        state, metrics = step(state, placed)
        assert np.isfinite(float(metrics["loss"]))
        jax.block_until_ready(state)

    twin = pair.twin.train()
    update = make_torch_optimizer(twin)
    inputs, mask = as_torch(batch), torch.from_numpy(np.array(batch.mask)[:, 0])

    def theirs() -> None:
        twin.zero_grad()
        loss = torch_unires.mask_loss(twin(*inputs), mask)
        loss.backward()
        update()
        assert np.isfinite(loss.item())

    # Dropout is on, so the losses differ.
    yield Row("step", ours, theirs)


def optimiser(pair: Pair, batch: Batch) -> Iterator[Row]:
    del batch
    optimizer = make_trainer(pair).optimizer
    params = gradients = state = None

    def move(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradients, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    compiled = jax.jit(move, donate_argnums=(0, 1))

    def ours() -> None:
        nonlocal params, state, gradients
        if params is None:
            params = jax.tree.map(jnp.copy, pair.params)
            gradients = jax.tree.map(lambda p: 1e-3 * p, params)
            state = jax.jit(optimizer.init)(params)
        params, state = jax.block_until_ready(compiled(params, state, gradients))

    update = make_torch_optimizer(pair.twin)

    def theirs() -> None:
        for parameter in pair.twin.parameters():
            if parameter.grad is None:
                parameter.grad = 1e-3 * parameter.detach()
        update()

    pair.twin.zero_grad()
    yield Row("optimiser", ours, theirs)
    pair.twin.zero_grad()


def both_ways(
    pair: Pair,
    paths: tuple[str, ...],
    call: Callable[..., Any],
    twin_call: Callable[..., Any],
    inputs: list[np.ndarray],
    fixed: tuple[Any, ...] = (),
) -> tuple[Run, Run]:
    """Forward and backward pass of a part on both sides, with gradients of parameters and `inputs`.

    Args:
        pair: the model and its twin.
        paths: beginnings of the paths of the part's parameters.
        call: maps `(model, inputs, *fixed)` to a pytree of arrays.
        twin_call: maps the inputs, as tensors, to a tuple of tensors.
        inputs: arrays with gradients.
        fixed: arrays without gradients.
    """
    forward, params, twin = pair
    moving = {path: leaf for path, leaf in params.items() if path.startswith(paths)}
    still = {path: leaf for path, leaf in params.items() if path not in moving}

    def run(moving: Any, inputs: Any, fixed: Any) -> Any:
        return call(forward.bind({**still, **moving}), inputs, *fixed)

    def backward(moving: Any, inputs: Any, fixed: Any) -> Any:
        outputs, pull = jax.vjp(lambda m, x: run(m, x, fixed), moving, inputs)
        return pull(jax.tree.map(jnp.ones_like, outputs))

    compiled = jax.jit(backward)
    arrays = (moving, [jnp.asarray(x) for x in inputs], jax.tree.map(jnp.asarray, fixed))
    tensors = [torch.from_numpy(x).requires_grad_() for x in inputs]

    def theirs() -> None:
        twin.zero_grad()
        for tensor in tensors:
            tensor.grad = None
        outputs = twin_call(*tensors)
        torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])

    return lambda: jax.block_until_ready(compiled(*arrays)), theirs


def towers(pair: Pair, batch: Batch) -> Iterator[Row]:
    image, text, _ = as_torch(batch)
    texts = text.flatten(0, 1)

    def see(model: Any, _: Any, image: jax.Array) -> Any:
        seen = model.vision(image)
        return seen.patches, seen.low, seen.high

    yield Row(
        "vision",
        *both_ways(
            pair,
            ("vision.",),
            see,
            lambda: pair.twin.vision(image),
            [],
            (image.numpy(),),
        ),
    )
    yield Row(
        "text",
        *both_ways(
            pair,
            ("text.",),
            lambda model, _, ids: model.text(ids),
            lambda: pair.twin.text(texts),
            [],
            (texts.int().numpy(),),
        ),
    )


def decoders(pair: Pair, batch: Batch) -> Iterator[Row]:
    twin, config = pair.twin, pair.forward.model.config
    rows, width, side = len(batch.image), config.decoder_width, config.grid
    length = batch.text.shape[2]
    valid = np.array(batch.text_valid)[:, 0]
    blocked = torch.from_numpy(~valid)
    place, order = sine_positions_2d(side, side, width), sine_positions_1d(length, width)
    twin_place, twin_order = torch.from_numpy(place), torch.from_numpy(order)
    key = jax.random.key(0)
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal((rows, *shape), np.float32)

    def filters(model: Any, inputs: Any, valid: jax.Array) -> Any:
        low, high, words = inputs
        low = model.low_filter(model.low_filter.project(low), words, valid)
        high = model.high_filter(model.high_filter.project(high), words, valid)
        return jnp.concatenate([low, high], 1)

    low = draw(config.low_tokens, config.vision_width)
    high = draw(config.high_tokens, config.vision_width)
    words = draw(length, width)
    yield Row(
        "filters",
        *both_ways(
            pair,
            ("low_filter.", "high_filter."),
            filters,
            lambda low, high, words: (twin.filter([low, high], words, blocked),),
            [low, high, words],
            (valid,),
        ),
    )

    def stage_1(model: Any, inputs: Any, valid: jax.Array, key: jax.Array) -> Any:
        x, words = inputs
        return model.decoder(x, jnp.asarray(place), words + order, words, valid=valid, key=key)

    patches = draw(side * side, width)
    yield Row(
        "stage 1",
        *both_ways(
            pair,
            ("decoder.",),
            stage_1,
            lambda x, words: (twin.decoder(x, twin_place, words + twin_order, words, blocked),),
            [patches, words],
            (valid, key),
        ),
    )

    def stage_2(model: Any, inputs: Any, key: jax.Array) -> Any:
        x, regions = inputs
        return model.group_decoder(x, jnp.asarray(place), regions, regions, key=key)

    yield Row(
        "stage 2",
        *both_ways(
            pair,
            ("group_decoder.",),
            stage_2,
            lambda x, regions: (twin.group_decoder(x, twin_place, regions, regions),),  # pyright: ignore
            [patches, draw(config.low_tokens + config.high_tokens, width)],
            (key,),
        ),
    )
    yield Row(
        "head",
        *both_ways(
            pair,
            ("head.",),
            lambda model, inputs: model.head(*inputs),
            lambda x, sentence: (
                twin.head(x.transpose(1, 2).reshape(rows, width, side, side), sentence),
            ),
            [patches, draw(config.embedding_width)],
        ),
    )
