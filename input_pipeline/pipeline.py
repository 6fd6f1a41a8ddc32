"""Makes batches from built datasets, with grain.

The order of the stages makes runs repeatable: shuffle and repeat all rows, transform each row with
random numbers seeded by its index, take this process's rows, then batch. So the global batches are the
same for any number of processes, and a run can resume on another number of them.
"""

import dataclasses
import functools
from collections.abc import Callable

import grain
import numpy as np
from absl import flags, logging

from input_pipeline import labels, transforms, workers
from input_pipeline.making import MakeRow, PipelineConfig, collate
from input_pipeline.rows import RowTable, make_rows, of_granularities
from input_pipeline.sources import DAMAGED, DatasetError, ExpressionTable, RecordSource
from input_pipeline.transforms import Transform
from input_pipeline.workers import Batches
from refseg_jax.batch import GRANULARITIES, ClassList, HostBatch
from refseg_jax.errors import UserError, shown
from refseg_jax.images import preprocess
from refseg_jax.text.anti import check_anti_length
from refseg_jax.text.lengths import quoted
from refseg_jax.text.tokenizers import build_tokenizer, check_length, prefix_id


def _never() -> bool:
    return False


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
        return _rows(self.config, self.table)

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
        return _batched(dataset, _share(batch_size, process_count))


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
    _check(config)
    source = _open(config)
    table = _chosen(config, ExpressionTable.of(source, config.tokenizer))
    _tell_texts(
        config, source, table, "left out", f"config.mixture.{name}" if name else "config.data"
    )
    return TrainRows(config, source, table.select(_tokens(table) != 0), name)


def train_batches(
    config: PipelineConfig, *, batch_size: int, seed: int, process_index: int = 0,
    process_count: int = 1, stop: Callable[[], bool] = _never,
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


def eval_batches(
    config: PipelineConfig, *, batch_size: int, process_index: int = 0, process_count: int = 1,
    stop: Callable[[], bool] = _never,
) -> Batches:  # fmt: skip
    """Yields every expression of a split once, with masks at native size; pads the last batch.

    All processes yield the same number of batches. The arguments are those of `train_batches`.

    Raises:
        UserError: as in `train_batches`, or an image is larger than the canvas.
    """
    config, source, rows, _ = _eval_rows(config)
    steps: list[Transform] = [transforms.PadExpressions(config.pairs)]
    if config.shuffled_text:
        steps.append(transforms.ShuffleText())
    steps.append(transforms.PromptParts(config.part_prompt))
    steps.append(transforms.Decode(config.max_pixels))
    steps.append(transforms.ResizeImage(config.image_size, config.resize))
    make = MakeRow(config, source, rows, tuple(steps), native=True)
    return _padded(make, batch_size, process_index, process_count, stop)


def label_batches(
    config: PipelineConfig, granularity: str, *, batch_size: int, process_index: int = 0,
    process_count: int = 1, stop: Callable[[], bool] = _never,
) -> Batches:  # fmt: skip
    """Yields every image of a split once, with the class of each pixel; pads the last batch.

    Args:
        config: which data to read; `pairs`, `images` and `granularities` are not used.
        granularity: `"category"` or `"part"`, see `input_pipeline.labels.asked_classes`.
        batch_size, process_index, process_count, stop: as in `train_batches`.

    Raises:
        UserError: as in `eval_batches`, or the dataset has no such classes.
    """
    config = dataclasses.replace(config, sampling="image", pairs=1, images=1)
    source = _labelled(config)
    steps: tuple[Transform, ...] = (
        transforms.Decode(config.max_pixels),
        transforms.ResizeImage(config.image_size, config.resize),
    )
    asked = labels.asked_classes(config, granularity)
    rows = labels.label_rows(len(source))
    make = labels.MakeLabels(config, source, rows, steps, native=False, asked=asked)
    return _padded(make, batch_size, process_index, process_count, stop)


def open_classes(config: PipelineConfig, granularity: str) -> ClassList:
    """The classes that the images of `label_batches` are asked for; raises what that would raise."""
    _labelled(config)
    return labels.class_list(labels.asked_classes(config, granularity), granularity, config)


def _labelled(config: PipelineConfig) -> RecordSource:
    _check(config)
    source = _open(config)
    _check_canvas(config, ExpressionTable.of(source, config.tokenizer))
    return source


def _padded(
    make: MakeRow, batch_size: int, process_index: int, process_count: int, stop: Callable[[], bool]
) -> Batches:
    """This process's batches of all rows, the last of which is padded."""
    config, count = make.config, len(make.rows)
    padded = -(-count // batch_size) * batch_size
    share = _share(batch_size, process_count)
    dataset = grain.MapDataset.range(padded).seed(0).random_map(make)
    dataset = _batched(dataset[process_index::process_count], share)
    number = workers.evaluation_workers(config.num_workers, len(dataset))
    return iterate(dataset, dataclasses.replace(config, num_workers=number), stop)


def check_eval(config: PipelineConfig) -> None:
    """Raises the errors that `eval_batches` would raise.

    Logs which expressions are not scored, and which are cut.
    """
    _, source, _, table = _eval_rows(config)
    if not config.shuffled_text:
        _tell_left_out(config, table)
        _tell_texts(config, source, _chosen(config, table), "not scored", "config.data")


def _eval_rows(
    config: PipelineConfig,
) -> tuple[PipelineConfig, RecordSource, RowTable, ExpressionTable]:
    if config.sampling != "group":
        config = dataclasses.replace(config, sampling="expressions")
    _check(config)
    source = _open(config)
    table = ExpressionTable.of(source, config.tokenizer)
    rows = _rows(config, table)
    _check_canvas(config, table)
    return config, source, rows, table


def _check_canvas(config: PipelineConfig, table: ExpressionTable) -> None:
    if len(config.canvas) != 2:
        raise UserError(f"config.eval.canvas={config.canvas}: give a height and a width")
    if (table.largest > config.canvas).any():
        raise UserError(
            f"{config.dataset} {config.split}: images are up to {table.largest[0]} x "
            f"{table.largest[1]} (height x width), the canvas is {config.canvas}; set "
            "config.eval.canvas to at least that"
        )


def iterate(
    dataset: grain.MapDataset, config: PipelineConfig, stop: Callable[[], bool] = _never
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


def _check(config: PipelineConfig) -> None:
    """Checks the config first, because a mistake in it would look like damage of every row."""
    tokenizer = build_tokenizer(config.tokenizer)
    check_length(config.context_length)
    if config.anti_prefix:
        check_anti_length(config.context_length)
        prefix_id(tokenizer, config.anti_prefix)
    preprocess.check_resize(config.resize)
    preprocess.check_mask_cells(config.mask_cells)
    if "{}" not in config.part_prompt:
        raise UserError(
            f"config.data.part_prompt={config.part_prompt!r}: put {{}} where the part stands, as in "
            "'all {}'"
        )
    _check_hiding(config)
    if not config.max_wait > 0:
        raise UserError(
            f"config.data.max_wait={config.max_wait:g}: give a positive number of seconds, or inf to "
            "wait for ever"
        )


def _check_hiding(config: PipelineConfig) -> None:
    if not 0 <= config.hide_probability <= 1:
        raise UserError(
            f"config.data.hide_probability={config.hide_probability:g}: give a share from 0 to 1"
        )
    if not 1 <= config.hide_cells <= config.image_size:
        raise UserError(
            f"config.data.hide_cells={config.hide_cells}: give the number of patches along a side, "
            f"from 1 to {config.image_size}"
        )
    colour = config.hide_colour
    if len(colour) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in colour):
        raise UserError(f"config.data.hide_colour={colour}: give red, green and blue from 0 to 255")


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
    """Logs one line if `granularities` leaves out expressions that the split has."""
    kinds = table.granularity[table.position != DAMAGED]
    counts = dict(zip(GRANULARITIES, np.bincount(kinds, minlength=len(GRANULARITIES)), strict=True))
    left_out = {k: n for k, n in counts.items() if n and k not in config.granularities}
    if left_out:
        logging.info(
            "%s %s: config.data.granularities leaves out %d of %d expressions (%s)",
            *(config.dataset, config.split, sum(left_out.values()), len(kinds)),
            ", ".join(f"{name} {count}" for name, count in left_out.items()),
        )


def _chosen(config: PipelineConfig, table: ExpressionTable) -> ExpressionTable:
    return table.select(of_granularities(table, config.granularities))


def _tokens(table: ExpressionTable) -> np.ndarray:
    assert table.tokens is not None
    return table.tokens


def _tell_texts(
    config: PipelineConfig, source: RecordSource, table: ExpressionTable, lost: str, section: str
) -> None:
    """Logs a line for the texts without a word, which are `lost`, and one for those that are cut."""
    tokens, length = _tokens(table), config.context_length
    where = f"{config.dataset} {config.split}"
    empty, cut = np.flatnonzero(tokens == 0), np.flatnonzero(tokens > length)
    if len(empty):
        logging.warning(
            "%s: %d of %d expressions have no word and are %s, e.g. %s",
            *(where, len(empty), len(tokens), lost, _example(source, table, int(empty[0]))),
        )
    if len(cut):
        longest = int(tokens[cut].max())
        logging.warning(
            "%s: %d of %d expressions are longer than %d tokens of %s, and their last words are cut, "
            "e.g. %s; %s.context_length=%d would read all of them",
            *(where, len(cut), len(tokens), length, config.tokenizer),
            *(_example(source, table, int(cut[0])), section, longest),
        )


def _example(source: RecordSource, table: ExpressionTable, place: int) -> str:
    """An expression of a table, shown on one line."""
    try:
        record = source[int(table.record[place])]
    except DatasetError:
        return "one whose record cannot be read any more"
    expression = record.expressions[table.position[place]]
    return f"{quoted(expression.text)} ({shown(expression.id)})"


def _batched(dataset: grain.MapDataset, rows: int) -> grain.MapDataset:
    """Batches of `rows` rows."""
    # Rows are batches of one already. grain rounds the length of an endless dataset, batched by one,
    # to a number that is too large for a length.
    return dataset if rows == 1 else dataset.batch(rows, batch_fn=collate)


def _share(batch_size: int, processes: int) -> int:
    if batch_size % processes:
        raise UserError(f"a batch of {batch_size} rows does not divide over {processes} processes")
    return batch_size // processes
