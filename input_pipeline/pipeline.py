"""From built datasets to batches, with grain.

The order is what makes runs repeatable: shuffle and repeat the whole, transform each row with
randomness of its own index, then take this process's rows, then batch. So the global batches are the
same for any number of processes, and a run resumes on another number of them.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from input_pipeline import transforms, workers
from input_pipeline.making import MakeRow, PipelineConfig, collate
from input_pipeline.rows import RowTable, make_rows, of_granularities
from input_pipeline.sources import DAMAGED, ExpressionTable, RecordSource
from input_pipeline.transforms import Transform
from refseg_jax.batch import GRANULARITIES, HostBatch
from refseg_jax.errors import UserError
from refseg_jax.images import preprocess
from refseg_jax.text.tokenizers import build_tokenizer, check_length


@dataclasses.dataclass(frozen=True)
class TrainRows:
    """What is trained on: the rows of a split that are left when some records are not.

    Attributes:
        config: see `PipelineConfig`.
        source: the split.
        table: its expressions of the config's granularities, in records that are trained on.
        name: of the member of a mixture.
    """

    config: PipelineConfig
    source: RecordSource
    table: ExpressionTable
    name: str = ""

    @functools.cached_property
    def rows(self) -> RowTable:
        """The rows of an epoch.

        Raises:
            UserError: there are none.
        """
        return _rows(self.config, self.table)

    @functools.cached_property
    def make(self) -> MakeRow:
        """Makes a row by its number."""
        config = self.config
        sample: Transform = transforms.PadExpressions(config.pairs)
        if config.sampling in ("image", "referent"):
            sample = transforms.SampleExpressions(config.pairs)
        steps: list[Transform] = [sample, transforms.Decode(config.max_pixels)]
        if config.flip_probability:
            steps.append(transforms.HorizontalFlip(config.flip_probability))
        steps.append(transforms.ResizeImage(config.image_size, config.resize))
        return MakeRow(config, self.source, self.rows, tuple(steps), native=False, name=self.name)

    @property
    def padding(self) -> HostBatch:
        """A row of nothing, of the shape of all others."""
        return self.make(len(self.rows), np.random.default_rng(0))

    def without(self, records: np.ndarray) -> "TrainRows":
        """The same but for some records, bool `[R]`."""
        kept = self.table.select(~records[self.table.record])
        return dataclasses.replace(self, table=kept)

    def dataset(
        self, *, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
    ) -> grain.MapDataset:
        """This process's batches by number, without end; arguments as for `train_batches`.

        Raises:
            UserError: there are no rows, or a batch does not divide.
        """
        dataset = grain.MapDataset.range(len(self.rows)).seed(seed).shuffle().repeat()
        dataset = dataset.random_map(self.make)[process_index::process_count]
        return dataset.batch(_share(batch_size, process_count), batch_fn=collate)


def open_train(config: PipelineConfig, name: str = "") -> TrainRows:
    """Opens a split to train on.

    Raises:
        UserError: no such dataset or split; no such tokenizer, way of resizing or length of texts.
    """
    _check(config)
    source = _open(config)
    table = ExpressionTable.of(source)
    return TrainRows(
        config, source, table.select(of_granularities(table, config.granularities)), name
    )


def train_batches(
    config: PipelineConfig, *, batch_size: int, seed: int, process_index: int = 0,
    process_count: int = 1,
) -> Any:  # fmt: skip
    """An endless iterator of this process's share of the global batches.

    Args:
        config: see `PipelineConfig`.
        batch_size: global; every process yields `batch_size / process_count` rows.
        seed: of order and transforms.
        process_index, process_count: of this process.

    Returns:
        A grain iterator of `HostBatch`, with `get_state` and `set_state`.

    Raises:
        UserError: no such dataset, split, or expressions; no such tokenizer, way of resizing or
            length of texts.
    """
    dataset = open_train(config).dataset(
        batch_size=batch_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    )
    return iter(iterate(dataset, config))


def eval_batches(
    config: PipelineConfig, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[HostBatch]:
    """Every expression of a split once, with native masks; the last batch is padded.

    All processes yield the same number of batches. Arguments and errors as for `train_batches`.

    Raises:
        UserError: also where an image is larger than the canvas.
    """
    config, source, rows, _ = _eval_rows(config)
    steps: list[Transform] = [transforms.PadExpressions(config.pairs)]
    if config.shuffled_text:
        steps.append(transforms.ShuffleText())
    steps.append(transforms.Decode(config.max_pixels))
    steps.append(transforms.ResizeImage(config.image_size, config.resize))
    make = MakeRow(config, source, rows, tuple(steps), native=True)
    padded = -(-len(rows) // batch_size) * batch_size
    share = _share(batch_size, process_count)
    dataset = grain.MapDataset.range(padded).seed(0).random_map(make)
    dataset = dataset[process_index::process_count].batch(share, batch_fn=collate)
    count = workers.evaluation_workers(config.num_workers, len(dataset))
    return iter(iterate(dataset, dataclasses.replace(config, num_workers=count)))


def check_eval(config: PipelineConfig) -> None:
    """Raises the `UserError` that `eval_batches` would raise; tells what is not going to be scored."""
    _, _, _, table = _eval_rows(config)
    if not config.shuffled_text:
        _tell_left_out(config, table)


def _eval_rows(
    config: PipelineConfig,
) -> tuple[PipelineConfig, RecordSource, RowTable, ExpressionTable]:
    if config.sampling != "group":
        config = dataclasses.replace(config, sampling="expressions")
    _check(config)
    source = _open(config)
    table = ExpressionTable.of(source)
    rows = _rows(config, table)
    if len(config.canvas) != 2:
        raise UserError(f"config.eval.canvas={config.canvas}: give a height and a width")
    if (table.largest > config.canvas).any():
        raise UserError(
            f"{config.dataset} {config.split}: images are up to {table.largest[0]} x "
            f"{table.largest[1]} (height x width), the canvas is {config.canvas}; set "
            "config.eval.canvas to at least that"
        )
    return config, source, rows, table


def iterate(dataset: grain.MapDataset, config: PipelineConfig) -> grain.IterDataset:
    """Batches in their order, prepared ahead by the config's threads or worker processes."""
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=config.prefetch)
    iterable = dataset.to_iter_dataset(options)
    if not config.num_workers:
        return iterable
    # Worker processes read absl's flags, which nobody parses in notebooks and tests.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(config.num_workers, config.prefetch)
    return iterable.mp_prefetch(options, worker_init_fn=workers.end_with_parent)


def _check(config: PipelineConfig) -> None:
    """Tries what rows are made with: a mistake in the config would look like damage of each row."""
    build_tokenizer(config.tokenizer)
    check_length(config.context_length)
    preprocess.check_resize(config.resize)


def _open(config: PipelineConfig) -> RecordSource:
    return RecordSource(config.data_dir, config.dataset, config.split)


def _rows(config: PipelineConfig, table: ExpressionTable) -> RowTable:
    rows = make_rows(
        table, config.sampling, config.granularities, pairs=config.pairs, images=config.images
    )
    if not len(rows):
        raise UserError(
            f"{config.dataset} {config.split}: no expression of {', '.join(config.granularities)}; "
            "set config.data.granularities to what the dataset has"
        )
    return rows


def _tell_left_out(config: PipelineConfig, table: ExpressionTable) -> None:
    """One line of the log, if `granularities` leaves out expressions that the split has."""
    kinds = table.granularity[table.position != DAMAGED]
    counts = dict(zip(GRANULARITIES, np.bincount(kinds, minlength=len(GRANULARITIES)), strict=True))
    left_out = {k: n for k, n in counts.items() if n and k not in config.granularities}
    if left_out:
        logging.info(
            "%s %s: config.data.granularities leaves out %d of %d expressions (%s)",
            *(config.dataset, config.split, sum(left_out.values()), len(kinds)),
            ", ".join(f"{name} {count}" for name, count in left_out.items()),
        )


def _share(batch_size: int, processes: int) -> int:
    if batch_size % processes:
        raise UserError(f"a batch of {batch_size} rows does not divide over {processes} processes")
    return batch_size // processes
