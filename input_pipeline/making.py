"""Makes batches of one row from the rows of a split, and joins them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from input_pipeline import prompts
from input_pipeline.rows import GROUPED, RowTable
from input_pipeline.schema import Expression, Record
from input_pipeline.settings import PipelineConfig
from input_pipeline.sources import DAMAGED, DatasetError, RecordSource
from input_pipeline.transforms import Example, Frame, Transform
from refseg_jax.batch import Batch, HostBatch, RowMeta
from refseg_jax.errors import UserError, escaped
from refseg_jax.images import preprocess
from refseg_jax.images.segmentation import SegmentationError
from refseg_jax.text.anti import anti_text
from refseg_jax.text.tokenizers import Tokenizer, build_tokenizer, prefix_id


@dataclasses.dataclass(frozen=True)
class MakeRow:
    """Makes a batch of one row from the index of a row; picklable, for worker processes.

    A row that cannot be made (a damaged image, ...) becomes one whose pairs are all invalid, with the
    reason in its meta, so that the order of the other rows stays the same. An expression without a word,
    a mask that cannot be read and a damaged image of a group are left out alone. `tools.feed` times the
    public parts.

    Attributes:
        config: which data to read, and how to make batches of it.
        source: the records of the split.
        rows: the rows of the split.
        steps: transforms from expressions and encoded images to network images, in order.
        native: whether to add masks at native size, for an evaluation.
        name: name of the member of a mixture, or `""`.
    """

    config: PipelineConfig
    source: RecordSource
    rows: RowTable
    steps: tuple[Transform, ...]
    native: bool
    name: str = ""

    def __call__(self, row: int, rng: np.random.Generator) -> HostBatch:
        """The batch of row `row`; an index beyond the table gives padding."""
        key = "/".join(filter(None, (self.name, self.config.split, str(row))))
        if row >= len(self.rows):
            return self._blank("")
        # Outside `try`: a tokenizer that a worker process cannot load is not a damaged row.
        tokenizer = build_tokenizer(self.config.tokenizer)
        example, left_out = None, list[str]()
        try:
            example = self.read(key, row, rng, left_out)
            return self._make(example, rng, tokenizer, left_out)
        except Exception as error:  # Whatever a decoder or a warp raises costs this row alone.
            records, _ = self.rows.entries(row)
            where = f"record {records[0]} of {self.config.dataset} {self.config.split}"
            if example is not None:
                where = _name(example.frames[0].record)
            return self._blank(key, "; ".join([*left_out, _reason(error, where)]))

    def read(self, key: str, row: int, rng: np.random.Generator, left_out: list[str]) -> Example:
        """Reads the records of a row; adds the images of a group that cannot be read to `left_out`."""
        records, positions = self.rows.drawn(row, rng)
        if self.config.sampling not in GROUPED:
            record = self.source[int(records[0])]
            if (positions == DAMAGED).any():
                raise DatasetError(
                    f"record {records[0]} of split {self.config.split!r} could not be read when "
                    "the run began; begin again"
                )
            expressions = tuple(record.expressions[k] for k in positions)
            frames = [Frame(record, expressions)]
        else:
            frames = list[Frame]()
            for n, (number, position) in enumerate(zip(records, positions, strict=True)):
                reused = n < self.rows.reused[row]
                try:
                    record = self.source[int(number)]
                    frames.append(Frame(record, (self._asked(record, position),), reused=reused))
                except DatasetError as error:
                    if not reused:
                        left_out.append(_reason(error, ""))
        if not frames:
            raise DatasetError("no image of the group is left")
        first = frames[0].expressions
        return Example(key, tuple(frames), tuple("" if e is None else e.text for e in first))

    def _asked(self, record: Record, position: int) -> Expression:
        """What a group asks an image for: an expression, with the targets of all that ask the same.

        ("man" may stand there once for each man.)
        """
        asked, by_group = record.expressions[position], self.config.sampling == "group"
        targets = [
            target
            for e in record.expressions
            if e.text == asked.text and (e.group == asked.group or not by_group)
            if e.granularity in self.config.granularities
            for target in e.targets
        ]
        return dataclasses.replace(asked, targets=tuple(dict.fromkeys(targets)))

    def _make(
        self, example: Example, rng: np.random.Generator, tokenizer: Tokenizer, left_out: list[str]
    ) -> HostBatch:
        """Runs the steps and packs the example; adds to `left_out` what is not in it."""
        try:
            for step in self.steps:
                example = step(example, rng)
        except Exception:
            sound = [f for f in example.frames if self._is_sound(f, example, left_out)]
            if not 0 < len(sound) < len(example.frames):
                raise
            # Of a group, one image is left out, and not the others.
            return self._make(
                dataclasses.replace(example, frames=tuple(sound)), rng, tokenizer, left_out
            )
        return self._pack(example, tokenizer, left_out)

    def _is_sound(self, frame: Frame, example: Example, left_out: list[str]) -> bool:
        alone = dataclasses.replace(example, frames=(frame,))
        try:
            for step in self.steps:
                alone = step(alone, np.random.default_rng(0))
        except Exception as error:
            if len(example.frames) > 1 and not frame.reused:
                left_out.append(_reason(error, _name(frame.record)))
            return False
        return True

    def _pack(self, example: Example, tokenizer: Tokenizer, left_out: list[str]) -> HostBatch:
        batch = self._blank(example.key).batch
        example = self.pack_words(batch, example, tokenizer, left_out)
        frames = [
            self._pack_frame(batch, n, frame, left_out) for n, frame in enumerate(example.frames)
        ]
        example = dataclasses.replace(example, frames=tuple(frames))
        missing = ("",) * (self.config.images - len(example.frames))
        meta = RowMeta(
            key=example.key,
            image_ids=tuple(f.record.image_id for f in example.frames) + missing,
            pair_ids=self._of_each(example, lambda record, e: e.id),
            expressions=example.texts,
            granularities=self._of_each(example, lambda record, e: e.granularity),
            groups=self._of_each(example, lambda record, e: e.group),
            categories=self._of_each(example, category_of),
            forms=self._of_each(example, lambda record, e: e.form),
            left_out=tuple(left_out),
            reused=tuple(n for n, frame in enumerate(example.frames) if frame.reused),
        )
        return HostBatch(batch, (meta,), self.name)

    def pack_words(
        self, batch: Batch, example: Example, tokenizer: Tokenizer, left_out: list[str]
    ) -> Example:
        """Writes the texts; returns the example without those that cannot be read."""
        config = self.config
        for k, text in enumerate(example.texts):
            if not self._has(example, k):
                continue
            try:
                ids, valid = tokenizer([text], config.context_length)
            except Exception as error:
                left_out.append(_reason(error, _name(example.frames[0].record)))
                example = _without(example, k)
            else:
                batch.text[0, k], batch.text_valid[0, k] = ids[0], valid[0]
        if batch.anti_text is not None:
            prefix = prefix_id(tokenizer, config.anti_prefix)
            texts, valid = np.asarray(batch.text), np.asarray(batch.text_valid)
            batch.anti_text[:] = anti_text(texts, valid, prefix)
        return example

    def _of_each(
        self, example: Example, tell: Callable[[Record, Expression], str]
    ) -> tuple[str, ...]:
        """The value of `tell` for each pair, image by image; `""` for padding."""
        count = self.config.pairs
        told = [""] * (self.config.images * count)
        for n, frame in enumerate(example.frames):
            for k, expression in enumerate(frame.expressions):
                if expression is not None:
                    told[n * count + k] = tell(frame.record, expression)
        return tuple(told)

    def _pack_frame(self, batch: Batch, n: int, frame: Frame, left_out: list[str]) -> Frame:
        """Writes an image and its masks; returns the frame without the pairs that are left out."""
        record = frame.record
        assert frame.image is not None and frame.affine is not None
        batch.image[0, n], batch.affine[0, n] = frame.image, frame.affine
        batch.size[0, n] = record.height, record.width
        first: dict[tuple[int, ...], int] = {}
        kept = list(frame.expressions)
        for k, expression in enumerate(frame.expressions):
            if expression is None:
                continue
            same = first.setdefault(expression.targets, k)
            try:
                if same == k:
                    self.pack_mask(batch, (0, n, k), frame, expression)
            except Exception as error:
                if not frame.reused:
                    left_out.append(_reason(error, _name(record)))
                first[expression.targets] = -1
            if first[expression.targets] < 0:
                kept[k] = None
                continue
            batch.valid[0, n, k] = True
            batch.present[0, n, k] = bool(expression.targets)
            if same < k:
                batch.mask[0, n, k] = batch.mask[0, n, same]
                if batch.native is not None:
                    batch.native[0, n, k] = batch.native[0, n, same]
        return dataclasses.replace(frame, expressions=tuple(kept))

    def pack_mask(
        self, batch: Batch, place: tuple[int, int, int], frame: Frame, expression: Expression
    ) -> None:
        """Writes the mask of an expression to `place`, the indices of its row, image and pair."""
        config, record = self.config, frame.record
        assert frame.affine is not None
        mask = frame.mask(expression)
        batch.mask[place] = preprocess.prepare_mask(
            mask, frame.affine, config.image_size, config.mask_stride, config.mask_cells
        )
        if batch.native is not None:
            batch.native[(*place, slice(record.height), slice(record.width))] = mask

    def _has(self, example: Example, k: int) -> bool:
        return any(frame.expressions[k] is not None for frame in example.frames)

    def _blank(self, key: str, error: str = "") -> HostBatch:
        n, k = self.config.images, self.config.pairs
        empty = ("",) * (n * k)
        meta = RowMeta(key, ("",) * n, empty, ("",) * k, empty, error)
        return HostBatch(blank_row(self.config, native=self.native), (meta,), self.name)


def blank_row(config: PipelineConfig, *, native: bool = False, labels: bool = False) -> Batch:
    """The arrays of one row of padding, with the shapes and types of all other rows.

    Args:
        config: how batches are made.
        native: whether there are masks at native size, see `Batch.native`.
        labels: whether there is the class of each pixel, see `Batch.labels`.
    """
    n, k, length = config.images, config.pairs, config.context_length
    size, cells = config.image_size, config.image_size // config.mask_stride
    return Batch(
        image=np.zeros((1, n, size, size, 3), np.uint8),
        text=np.zeros((1, k, length), np.int32),
        text_valid=np.zeros((1, k, length), bool),
        mask=np.zeros((1, n, k, cells, cells), np.uint8),
        present=np.zeros((1, n, k), bool),
        valid=np.zeros((1, n, k), bool),
        size=np.ones((1, n, 2), np.int32),
        affine=np.tile(np.eye(2, 3, dtype=np.float32), (1, n, 1, 1)),
        native=np.zeros((1, n, k, *config.canvas), np.uint8) if native else None,
        anti_text=np.zeros((1, k, length), np.int32) if config.anti_prefix else None,
        labels=np.full((1, n, *config.canvas), -1, np.int16) if labels else None,
    )


def category_of(record: Record, expression: Expression) -> str:
    """The category that a pair counts for (`RowMeta.categories`), `""` if there is none or several.

    If the text is a prompt made from category names ("all car", "wheel of bus"), the category is the
    text itself: an image without a car is asked with the same text. Else it is the category of all
    targets.
    """
    if expression.granularity == "category":
        return expression.text
    names = {record.targets[target].category for target in expression.targets}
    if len(names) != 1:
        return ""
    (name,) = names
    # The wheel of a bus is another category than that of a bicycle.
    return expression.text if expression.text.startswith(prompts.part(name, of="")) else name


def _without(example: Example, k: int) -> Example:
    """The example with pair `k` of all images as padding."""
    frames = tuple(
        dataclasses.replace(f, expressions=(*f.expressions[:k], None, *f.expressions[k + 1 :]))
        for f in example.frames
    )
    texts = (*example.texts[:k], "", *example.texts[k + 1 :])
    return dataclasses.replace(example, frames=frames, texts=texts)


def _name(record: Record) -> str:
    return escaped(f"{record.source}: image {record.image_id} ({record.file_name})")


def _reason(error: Exception, where: str) -> str:
    """One line about an error; `where` names the record if the error does not."""
    text = escaped(" ".join(str(error).split()))
    if not isinstance(error, UserError | SegmentationError):
        text = f"{type(error).__name__}: {text}"
    return text if not where or where in text else f"{where}: {text}"


def collate(rows: Sequence[HostBatch]) -> HostBatch:
    """Joins batches of one row each to one batch."""
    fields: dict[str, Any] = {
        field.name: np.concatenate(values) if values[0] is not None else None
        for field in dataclasses.fields(Batch)
        if (values := [getattr(row.batch, field.name) for row in rows])
    }
    return HostBatch(Batch(**fields), tuple(row.meta[0] for row in rows), rows[0].name)
