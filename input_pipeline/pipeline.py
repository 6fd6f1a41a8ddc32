"""From built datasets to batches, with grain.

The order is what makes runs repeatable: shuffle and repeat the whole, transform each row with
randomness of its own index, then take this process's rows, then batch. So the global batches are the
same for any number of processes, and a run resumes on another number of them.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from input_pipeline import transforms, workers
from input_pipeline.rows import RowTable, Sampling, make_rows
from input_pipeline.schema import Record
from input_pipeline.sources import DAMAGED, DatasetError, ExpressionTable, RecordSource
from input_pipeline.transforms import Example, Frame, Transform
from refseg_jax import preprocess
from refseg_jax.batch import GRANULARITIES, Batch, HostBatch, RowMeta
from refseg_jax.errors import UserError
from refseg_jax.tokenizers import ExpressionError, Tokenizer, build_tokenizer, check_length


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """What is read and how it becomes a batch.

    Attributes:
        data_dir, dataset, split: a built dataset, `<data_dir>/<dataset>`.
        sampling: what a row is; see `input_pipeline.rows`. Evaluation always uses `expressions`
            (or `group`).
        pairs: K. images: N.
        granularities: which expressions take part.
        image_size: side of the network's input. mask_stride: network pixels per mask cell.
        resize: `letterbox` or `stretch`.
        context_length: L, SOS and EOS included.
        tokenizer: see `refseg_jax.tokenizers.build_tokenizer`.
        flip_probability: of mirrored training rows.
        num_workers: processes that prepare batches; 0 prepares them in threads of this one. An
            evaluation has no more of them than there are cores and batches.
        threads: of each process. prefetch: batches kept ready by each worker.
        canvas: `(Hc, Wc)` that holds every native mask of an evaluation.
        shuffled_text: evaluate with the words of other targets (`transforms.ShuffleText`).
        max_pixels: larger images are refused before they are decoded.
    """

    data_dir: str
    dataset: str
    split: str
    image_size: int
    mask_stride: int
    sampling: Sampling = "image"
    pairs: int = 8
    images: int = 1
    granularities: tuple[str, ...] = ("object",)
    resize: preprocess.Resize = "letterbox"
    context_length: int = 17
    tokenizer: str = "clip"
    flip_probability: float = 0.0
    num_workers: int = 0
    threads: int = 2
    prefetch: int = 4
    canvas: tuple[int, int] = (640, 640)
    shuffled_text: bool = False
    max_pixels: int = preprocess.MAX_PIXELS


@dataclasses.dataclass(frozen=True)
class MakeRow:
    """Row index -> a batch of one row; picklable, for worker processes.

    A row that cannot be made (a damaged image, an empty expression, ...) becomes one whose pairs are
    all invalid, with the reason in its meta: the order of the others does not change.
    """

    config: PipelineConfig
    source: RecordSource
    rows: RowTable
    steps: tuple[Transform, ...]
    native: bool

    def __call__(self, row: int, rng: np.random.Generator) -> HostBatch:
        """Row `row`; indices beyond the table are padding."""
        key = f"{self.config.split}/{row}"
        if row >= len(self.rows):
            return self._blank("")
        # Not within `try`: a tokenizer that a worker process cannot load is no damaged row.
        tokenizer = build_tokenizer(self.config.tokenizer)
        try:
            example = self._read(key, row)
            for step in self.steps:
                example = step(example, rng)
            return self._pack(example, tokenizer)
        except (UserError, ValueError) as error:
            return self._blank(key, " ".join(str(error).split()))

    def _read(self, key: str, row: int) -> Example:
        records, positions = self.rows.entries(row)
        if self.config.sampling != "group":
            record = self.source[int(records[0])]
            if (positions == DAMAGED).any():
                raise DatasetError(
                    f"record {records[0]} of split {self.config.split!r} could not be read when "
                    "the run began; begin again"
                )
            expressions = tuple(record.expressions[k] for k in positions)
            frames = (Frame(record, expressions),)
        else:
            found = [self.source[int(r)] for r in records]
            frames = tuple(
                Frame(record, (record.expressions[k],))
                for record, k in zip(found, positions, strict=True)
            )
        first = frames[0].expressions
        return Example(key, frames, tuple("" if e is None else e.text for e in first))

    def _pack(self, example: Example, tokenizer: Tokenizer) -> HostBatch:
        config = self.config
        blank = self._blank(example.key)
        batch = blank.batch
        there = [k for k, text in enumerate(example.texts) if self._has(example, k)]
        if there:
            batch.text[0, there], batch.text_valid[0, there] = self._tokenize(
                tokenizer, example.frames[0].record, [example.texts[k] for k in there]
            )
        for n, frame in enumerate(example.frames):
            self._pack_frame(batch, n, frame)
        first = example.frames[0].expressions
        missing = ("",) * (config.images - len(example.frames))
        meta = RowMeta(
            key=example.key,
            image_ids=tuple(f.record.image_id for f in example.frames) + missing,
            pair_ids=tuple("" if e is None else e.id for e in first),
            expressions=example.texts,
            granularities=tuple("" if e is None else e.granularity for e in first),
        )
        return HostBatch(batch, (meta,))

    def _tokenize(
        self, tokenizer: Tokenizer, record: Record, texts: list[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        try:
            return tokenizer(texts, self.config.context_length)
        except ExpressionError as error:
            name = f"{record.source}: image {record.image_id} ({record.file_name})"
            raise ExpressionError(f"{name}: {error}") from None

    def _pack_frame(self, batch: Batch, n: int, frame: Frame) -> None:
        config, record = self.config, frame.record
        assert frame.image is not None and frame.affine is not None
        batch.image[0, n], batch.affine[0, n] = frame.image, frame.affine
        batch.size[0, n] = record.height, record.width
        first: dict[tuple[int, ...], int] = {}
        for k, expression in enumerate(frame.expressions):
            if expression is None:
                continue
            batch.valid[0, n, k] = True
            batch.present[0, n, k] = bool(expression.targets)
            same = first.setdefault(expression.targets, k)
            if same < k:
                batch.mask[0, n, k] = batch.mask[0, n, same]
                if batch.native is not None:
                    batch.native[0, n, k] = batch.native[0, n, same]
                continue
            mask = frame.mask(expression)
            batch.mask[0, n, k] = preprocess.prepare_mask(
                mask, frame.affine, config.image_size, config.mask_stride
            )
            if batch.native is not None:
                batch.native[0, n, k, : record.height, : record.width] = mask

    def _has(self, example: Example, k: int) -> bool:
        return any(frame.expressions[k] is not None for frame in example.frames)

    def _blank(self, key: str, error: str = "") -> HostBatch:
        c = self.config
        n, k, cells = c.images, c.pairs, c.image_size // c.mask_stride
        batch = Batch(
            image=np.zeros((1, n, c.image_size, c.image_size, 3), np.uint8),
            text=np.zeros((1, k, c.context_length), np.int32),
            text_valid=np.zeros((1, k, c.context_length), bool),
            mask=np.zeros((1, n, k, cells, cells), np.uint8),
            present=np.zeros((1, n, k), bool),
            valid=np.zeros((1, n, k), bool),
            size=np.ones((1, n, 2), np.int32),
            affine=np.tile(np.eye(2, 3, dtype=np.float32), (1, n, 1, 1)),
            native=np.zeros((1, n, k, *c.canvas), np.uint8) if self.native else None,
        )
        empty = ("",) * k
        return HostBatch(batch, (RowMeta(key, ("",) * n, empty, empty, empty, error),))


def collate(rows: Sequence[HostBatch]) -> HostBatch:
    """Batches of one row each to one batch."""
    fields: dict[str, Any] = {
        field.name: np.concatenate(values) if values[0] is not None else None
        for field in dataclasses.fields(Batch)
        if (values := [getattr(row.batch, field.name) for row in rows])
    }
    return HostBatch(Batch(**fields), tuple(row.meta[0] for row in rows))


def rows_per_epoch(config: PipelineConfig) -> int:
    """Rows of a split.

    Raises:
        UserError: there are none.
    """
    return len(_rows(config, _open(config))[0])


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
    _check(config)
    source = _open(config)
    rows, table = _rows(config, source)
    _tell_left_out(config, table)
    sample: Transform = transforms.PadExpressions(config.pairs)
    if config.sampling in ("image", "referent"):
        sample = transforms.SampleExpressions(config.pairs)
    steps: list[Transform] = [sample, transforms.Decode(config.max_pixels)]
    if config.flip_probability:
        steps.append(transforms.HorizontalFlip(config.flip_probability))
    steps.append(transforms.ResizeImage(config.image_size, config.resize))
    make = MakeRow(config, source, rows, tuple(steps), native=False)
    dataset = grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat()
    share = _share(batch_size, process_count)
    dataset = dataset.random_map(make)[process_index::process_count]
    return iter(_iterate(dataset.batch(share, batch_fn=collate), config))


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
    return iter(_iterate(dataset, dataclasses.replace(config, num_workers=count)))


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
    rows, table = _rows(config, source)
    if len(config.canvas) != 2:
        raise UserError(f"config.eval.canvas={config.canvas}: give a height and a width")
    if (table.largest > config.canvas).any():
        raise UserError(
            f"{config.dataset} {config.split}: images are up to {table.largest[0]} x "
            f"{table.largest[1]} (height x width), the canvas is {config.canvas}; set "
            "config.eval.canvas to at least that"
        )
    return config, source, rows, table


def _iterate(dataset: grain.MapDataset, config: PipelineConfig) -> grain.IterDataset:
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


def _rows(config: PipelineConfig, source: RecordSource) -> tuple[RowTable, ExpressionTable]:
    table = ExpressionTable.of(source)
    rows = make_rows(
        table, config.sampling, config.granularities, pairs=config.pairs, images=config.images
    )
    if not len(rows):
        raise UserError(
            f"{config.dataset} {config.split}: no expression of {', '.join(config.granularities)}; "
            "set config.data.granularities to what the dataset has"
        )
    return rows, table


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
