"""The input pipeline, compared with a plain loop that only reads and decodes the same records.

The loop has one thread and stops at the pixels. The pipeline also samples expressions, letterboxes,
reduces masks to their stride, tokenises and batches, in as many threads as in training. The data is like
RefCOCO: photographs of 640 x 480, about 95 kB each.
"""

import dataclasses
import io
import time
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs import refcoco_unires
from input_pipeline import pipeline
from input_pipeline.schema import Record
from input_pipeline.sources import RecordSource
from refseg_jax.images.decoding import decode_image
from refseg_jax.naming import construct
from tests.benchmarks.turns import clocked, ratios, spread, take_turns
from tests.input_pipeline.tiny_dataset import build_tiny_dataset

ROUNDS, BATCHES, BATCH_SIZE, IMAGES = 7, 16, 8, 64


@pytest.mark.bench
@pytest.mark.parametrize(("sampling", "pairs"), [("referent", 1), ("image", 8)])
def test_images_per_second_against_a_bare_decode_loop(tmp_path, sampling, pairs):
    build_tiny_dataset(tmp_path, {"train": IMAGES}, (480, 640), change=like_a_photograph)
    chosen: Any = refcoco_unires.get_config()
    fields = {
        **chosen.data.to_dict(),
        **{"data_dir": str(tmp_path), "dataset": "tiny", "sampling": sampling, "pairs": pairs},
        **{"image_size": 416, "mask_stride": 4, "num_workers": 0},
    }
    config = construct(pipeline.PipelineConfig, fields, what="config.data")
    source = RecordSource(str(tmp_path), "tiny", "train")
    size = np.mean([len(source[i].image) for i in range(IMAGES)])
    works = {
        "pipeline": partial(prepare, config),
        "alone": partial(prepare, dataclasses.replace(config, threads=0)),
        "bare": lambda: clocked(partial(decode, source)),
    }
    for work in works.values():
        work()
    seconds = take_turns(works, ROUNDS)
    rates = {name: [BATCHES * BATCH_SIZE / s for s in each] for name, each in seconds.items()}
    print(f"\nSampling {sampling!r}, K = {pairs}, {config.threads} threads, {size / 1000:.0f} kB")
    for name, what in (
        ("pipeline", "pipeline"),
        ("alone", "the same without threads"),
        ("bare", "reading and decoding"),
    ):
        print(f"{what:24} {spread(rates[name], '.0f')} images/s")
    for name, what in (("bare", "decoding (bar: >= 0.9)"), ("alone", "no threads")):
        ratio = spread(ratios(rates["pipeline"], rates[name]), ".2f")
        print(f"pipeline / {what:24} {ratio}")


def prepare(config: pipeline.PipelineConfig) -> float:
    """Seconds from the start of a new pipeline to its last batch.

    The pipeline is new each time, because one that has paused would have batches in store. The batches
    that it prepares in advance at the end count against it.
    """
    batches: Any = pipeline.train_batches(config, batch_size=BATCH_SIZE, seed=0)
    start = time.perf_counter()
    for _ in range(BATCHES):
        host = next(batches)
        assert host.batch.valid.any(axis=(1, 2)).all()
    seconds = time.perf_counter() - start
    batches.close()
    return seconds


def decode(source: RecordSource) -> None:
    order = np.random.default_rng(0).permutation(BATCHES * BATCH_SIZE) % len(source)
    for index in order:
        record = source[int(index)]
        assert decode_image(record.image, name=record.file_name).shape[2] == 3


def like_a_photograph(record: Record) -> Record:
    """The record with texture of all scales in its image: a flat image would decode too fast."""
    rng = np.random.default_rng(int(record.image_id.removeprefix("train")))
    flat = np.asarray(Image.open(io.BytesIO(record.image)), np.float32)
    size = (record.width, record.height)
    for cells, strength in ((8, 30.0), (40, 20.0), (160, 12.0), (480, 8.0)):
        noise = rng.standard_normal((cells * 3 // 4, cells, 3)).astype(np.float32)
        image = Image.fromarray(np.uint8(np.clip(128 + 40 * noise, 0, 255)))
        smooth = np.asarray(image.resize(size, Image.Resampling.BICUBIC), np.float32)
        flat = flat + strength * (smooth - 128) / 40
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(np.clip(flat, 0, 255))).save(buffer, "JPEG", quality=90)
    return dataclasses.replace(record, image=buffer.getvalue())
