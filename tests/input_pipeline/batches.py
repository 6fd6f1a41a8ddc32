"""Batches of the tiny dataset and their rows, for the tests of the pipeline."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from input_pipeline.pipeline import PipelineConfig, open_train
from input_pipeline.schema import Record
from input_pipeline.sources import RecordSource
from refseg_jax.batch import HostBatch, RowMeta
from tests.input_pipeline.tiny_dataset import build_tiny_dataset

EVERY = ("object", "part", "multi", "none")
SPLITS = {"train": 6, "val": 7}


def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the tiny dataset; returns the data folder."""
    folder = tmp_path_factory.mktemp("data")
    build_tiny_dataset(folder, SPLITS)
    return folder


def make_config(data_dir: Path, split: str = "val", **changes: Any) -> PipelineConfig:
    fields: dict[str, Any] = {
        "image_size": 32,
        "mask_stride": 4,
        "pairs": 2,
        "context_length": 12,
        "canvas": (40, 40),
        **changes,
    }
    return PipelineConfig(str(data_dir), "tiny", split, **fields)


def rows_per_epoch(config: PipelineConfig) -> int:
    return len(open_train(config).rows)


def rows_of(batches: list[HostBatch]) -> list[tuple[dict[str, Any], RowMeta]]:
    """The rows of batches one by one, without fields that are `None`."""
    return [
        ({name: values[b] for name, values in vars(host.batch).items() if values is not None}, meta)
        for host in batches
        for b, meta in enumerate(host.meta)
    ]


def assert_same_rows(found: list[Any], expected: list[Any]) -> None:
    assert [meta for _, meta in found] == [meta for _, meta in expected]
    for (one, _), (other, _) in zip(found, expected, strict=True):
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def weave(shares: list[list[HostBatch]]) -> list[Any]:
    """Joins the shares of all processes to global rows: process `i % count` has row `i`."""
    return [row for rows in zip(*map(rows_of, shares), strict=True) for row in rows]


def take(batches: Iterator[HostBatch], count: int) -> list[HostBatch]:
    return list(itertools.islice(batches, count))


def pair_ids(batches: list[HostBatch]) -> list[str]:
    return [name for _, meta in rows_of(batches) for name in meta.pair_ids if name]


def records(data_dir: Path, split: str = "val") -> list[Record]:
    source = RecordSource(str(data_dir), "tiny", split)
    return [source[index] for index in range(len(source))]
