"""Batches by index to an iterator of batches that are prepared ahead."""

from collections.abc import Callable

import grain
from absl import flags

from input_pipeline import workers
from input_pipeline.making import collate
from input_pipeline.settings import PipelineConfig
from input_pipeline.workers import Batches
from refseg_jax.errors import UserError


def never() -> bool:
    """A `stop` that never asks to stop."""
    return False


def iterate(
    dataset: grain.MapDataset, config: PipelineConfig, stop: Callable[[], bool] = never
) -> Batches:
    """Batches in order, prepared ahead by the config's threads or worker processes."""
    iterable = _prepared(dataset, config)
    return Batches(iterable, max_wait=config.max_wait, stop=stop)


def _prepared(dataset: grain.MapDataset, config: PipelineConfig) -> grain.IterDataset:
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=config.prefetch)
    iterable = dataset.to_iter_dataset(options)
    if not config.num_workers:
        return iterable
    workers.start_tracker()
    # Worker processes read absl's flags, which are not parsed in notebooks and tests.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(config.num_workers, config.prefetch)
    return iterable.mp_prefetch(options, worker_init_fn=workers.end_with_parent)


def batched(dataset: grain.MapDataset, rows: int) -> grain.MapDataset:
    """Batches of `rows` rows."""
    # Rows are batches of one already. grain rounds the length of an endless dataset, batched by one,
    # to a number that is too large for a length.
    return dataset if rows == 1 else dataset.batch(rows, batch_fn=collate)


def own_share(batch_size: int, processes: int) -> int:
    """Rows of a batch that each process makes.

    Raises:
        UserError: the rows do not divide.
    """
    if batch_size % processes:
        raise UserError(f"a batch of {batch_size} rows does not divide over {processes} processes")
    return batch_size // processes
