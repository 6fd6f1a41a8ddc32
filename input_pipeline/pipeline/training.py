"""Rows of a split to train on, and an endless iterator of their batches."""

import dataclasses
import functools
from collections.abc import Callable

import grain
import numpy as np

from input_pipeline import transforms
from input_pipeline.making import MakeRow
from input_pipeline.pipeline.expressions import checked_rows, chosen, tell_texts, tokens_of
from input_pipeline.pipeline.iteration import batched, iterate, never, own_share
from input_pipeline.rows import GROUPED, DrawImages, RowTable, draw_rows, make_rows
from input_pipeline.settings import PipelineConfig, check_settings
from input_pipeline.sources import ExpressionTable, RecordSource
from input_pipeline.transforms import Transform
from input_pipeline.workers import Batches
from refseg_jax.batch import HostBatch


@dataclasses.dataclass(frozen=True)
class TrainRows:
    """Rows of a split that remain after filtering, for training.

    Attributes:
        config: which data to read, and how to make batches of it.
        source: the records of the split.
        table: the expressions that remain: of the config's granularities, in records to train on.
        name: name of the member of a mixture, or `""`.
    """

    config: PipelineConfig
    source: RecordSource
    table: ExpressionTable
    name: str = ""

    @functools.cached_property
    def rows(self) -> RowTable:
        """The rows of an epoch.

        Raises:
            UserError: no expression remains.
        """
        config = self.config
        kind = config.sampling, config.granularities
        if config.sampling in GROUPED:
            rows = draw_rows(self.table, *kind, DrawImages(config.images, config.negatives))
        else:
            rows = make_rows(self.table, *kind, pairs=config.pairs, images=config.images)
        return checked_rows(config, rows)

    @functools.cached_property
    def make(self) -> MakeRow:
        """Makes the batch of a row from its index."""
        config = self.config
        sample: Transform = transforms.PadExpressions(config.pairs)
        if config.sampling in ("image", "referent"):
            sample = transforms.SampleExpressions(config.pairs)
        steps: list[Transform] = [
            sample,
            transforms.PromptParts(config.part_prompt),
            transforms.Decode(config.max_pixels),
        ]
        if config.flip_probability:
            steps.append(transforms.HorizontalFlip(config.flip_probability))
        steps.append(transforms.ResizeImage(config.image_size, config.resize))
        if config.pseudo_labelled and config.hide_probability:
            steps.append(
                transforms.HideAndSeek(
                    config.hide_probability, config.hide_cells, config.hide_colour
                )
            )
        return MakeRow(config, self.source, self.rows, tuple(steps), native=False, name=self.name)

    @property
    def padding(self) -> HostBatch:
        """A row of padding, with the shapes of all other rows."""
        return self.make(len(self.rows), np.random.default_rng(0))

    def without(self, records: np.ndarray) -> "TrainRows":
        """A copy without the records where `records`, bool `[R]`, is true."""
        kept = self.table.select(~records[self.table.record])
        return dataclasses.replace(self, table=kept)

    def dataset(
        self, *, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
    ) -> grain.MapDataset:
        """This process's batches by index, endless; arguments as in `train_batches`.

        Raises:
            UserError: there are no rows, or `batch_size` is not a multiple of `process_count`.
        """
        dataset = grain.MapDataset.range(len(self.rows)).seed(seed).shuffle().repeat()
        dataset = dataset.random_map(self.make)[process_index::process_count]
        return batched(dataset, own_share(batch_size, process_count))


def open_train(config: PipelineConfig, name: str = "") -> TrainRows:
    """Opens a split to train on.

    Args:
        config: which data to read, and how to make batches of it.
        name: name of the member of a mixture, or `""`.

    Raises:
        UserError: the dataset or the split does not exist, or the tokenizer, `resize` or
            `context_length` is invalid.
        ValueError: the name of a granularity is unknown.
    """
    check_settings(config)
    source = RecordSource(config.data_dir, config.dataset, config.split)
    table = chosen(config, ExpressionTable.of(source, config.tokenizer))
    tell_texts(
        config, source, table, "left out", f"config.mixture.{name}" if name else "config.data"
    )
    table = table.select(tokens_of(table) != 0)
    if config.sampling in GROUPED and not config.negatives:
        table = table.of_targets()
    return TrainRows(config, source, table, name)


def train_batches(
    config: PipelineConfig, *, batch_size: int, seed: int, process_index: int = 0,
    process_count: int = 1, stop: Callable[[], bool] = never,
) -> Batches:  # fmt: skip
    """An endless iterator of this process's share of the global batches.

    Args:
        config: which data to read, and how to make batches of it.
        batch_size: rows of a global batch; every process yields `batch_size / process_count` rows.
        seed: seed of the order and of the transforms.
        process_index: index of this process.
        process_count: number of processes that share each batch.
        stop: as that of `input_pipeline.workers.Batches`.

    Raises:
        UserError: as in `open_train`; or there are no rows, or `batch_size` is not a multiple of
            `process_count`.
    """
    dataset = open_train(config).dataset(
        batch_size=batch_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    )
    return iterate(dataset, config, stop)
