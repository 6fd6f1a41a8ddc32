"""The forward pass of CLIP's ViT-B/16 in bf16 on one GPU, compared with a large matrix product."""

import time
from functools import partial
from statistics import median

import jax
import pytest

from tests.benchmarks import vit
from tests.benchmarks.gpu_step_bench import ROUNDS, SIDE, STEPS, find_gpu, make_multiply
from tests.benchmarks.turns import ratios, spread, take_turns

#: Size of the images -> images per batch, with about equally many tokens.
BATCHES = {224: 512, 480: 112}


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("size", BATCHES)
def test_forward_pass_of_vit_b16_in_bf16(size):
    card = find_gpu()
    forward, count = vit.tower(size, "bfloat16"), BATCHES[size]
    host = vit.random_images(size, count)
    params = jax.device_put(vit.random_parameters(forward), card)
    images = jax.device_put(host, card)
    run = jax.jit(partial(vit.see, forward))
    jax.block_until_ready(run(params, images))

    def see() -> float:
        begun = time.perf_counter()
        for _ in range(STEPS):
            result = run(params, images)
        jax.block_until_ready(result)
        return (time.perf_counter() - begun) / STEPS

    seconds = take_turns({"matmul": make_multiply(card), "vit": see}, ROUNDS)
    work = vit.count_flops(forward, host)
    peaks = [2 * SIDE**3 / s for s in seconds["matmul"]]
    reached = [work / s for s in seconds["vit"]]
    print(
        f"\n{card.device_kind}: ViT-B/16, bf16, {count} images of {size}: "
        f"{count / median(seconds['vit']):.0f} images/s, {median(reached) / 1e12:.0f} TFLOP/s, "
        f"{spread([100 * r for r in ratios(reached, peaks)], '.0f')} % of the matmul peak "
        f"({median(peaks) / 1e12:.0f} TFLOP/s)"
    )
