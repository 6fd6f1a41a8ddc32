"""Batches for benchmarks of classes: every image of a split, with a map of the class of each pixel.

A benchmark asks every image for every class of the dataset's list, so rows have no texts of their own.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence

import numpy as np
from absl import logging

from input_pipeline.making import MakeRow, blank_row
from input_pipeline.rows import RowTable
from input_pipeline.schema import CLASSES, AskedClass, Record
from input_pipeline.settings import PipelineConfig
from input_pipeline.sources import DatasetError, RecordSource, dataset_folder, split_names
from input_pipeline.transforms import Example, Frame
from refseg_jax.batch import ClassList, HostBatch, RowMeta
from refseg_jax.errors import UserError, shown
from refseg_jax.text.tokenizers import Tokenizer, build_tokenizer

#: Granularities whose expressions name classes.
CLASS_GRANULARITIES = ("category", "part")


def class_granularity(granularities: Sequence[str], field: str) -> str:
    """The one granularity of classes among those of an evaluation.

    Raises:
        UserError: there is none, or there are both: a pixel has one class.
    """
    found = [name for name in CLASS_GRANULARITIES if name in granularities]
    if len(found) != 1:
        raise UserError(
            f"{field}: classes are either categories or parts; set it to ('category',) or ('part',)"
        )
    return found[0]


def asked_classes(config: PipelineConfig, granularity: str) -> tuple[AskedClass, ...]:
    """The dataset's closed list of classes.

    It is the list that the build has stored. A dataset without one (your own) has the classes that
    the expressions of its splits name, sorted by text.

    Args:
        config: names the dataset; the list is the same for all its splits.
        granularity: `"category"` or `"part"`.

    Raises:
        DatasetError: the file of the list is damaged, or there is no class, or one twice.
    """
    folder = dataset_folder(config.data_dir, config.dataset)
    path = folder / CLASSES
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        asked = tuple(AskedClass(text, category) for text, category in stored[granularity])
    except FileNotFoundError:
        asked = _named(config, granularity)
    except KeyError:
        asked = ()
    except (OSError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise DatasetError(f"{path}: damaged ({reason}); build the dataset again") from None
    if not asked:
        raise DatasetError(
            f"{folder}: no class of granularity {granularity!r}; set the evaluation's "
            "granularities to what the dataset has"
        )
    (text, often), *_ = Counter(one.text for one in asked).most_common(1)
    if often > 1:
        # Of its two logits the first would always win, so that pixels of the other are never found.
        raise DatasetError(
            f"{folder}: {shown(text)} is {often} classes of its list; correct the names in its source "
            "and build it again"
        )
    return asked


def _named(config: PipelineConfig, granularity: str) -> tuple[AskedClass, ...]:
    """The classes that expressions name, with the category of their targets if it is always the same."""
    categories: dict[str, set[str]] = {}
    for split in split_names(dataset_folder(config.data_dir, config.dataset)):
        source = RecordSource(config.data_dir, config.dataset, split)
        for index in range(len(source)):
            try:
                record = source[index]
            except DatasetError as error:
                logging.warning("left out of the list of classes: %s", error)
                continue
            for e in record.expressions:
                if e.granularity == granularity:
                    named = {record.targets[target].category for target in e.targets}
                    categories.setdefault(e.text, set()).update(named)
    logging.info("%s: its classes are the %d that it names", config.dataset, len(categories))
    if granularity == "part":
        return tuple(AskedClass(text) for text in sorted(categories))
    return tuple(
        AskedClass(text, found.copy().pop() if len(found) == 1 else "")
        for text, found in sorted(categories.items())
    )


def class_list(asked: Sequence[AskedClass], granularity: str, config: PipelineConfig) -> ClassList:
    """The classes with their token ids; logs which texts are cut.

    Raises:
        UserError: there is no such tokenizer, or a text has no word.
    """
    names = tuple(one.text for one in asked)
    texts = names
    if granularity == "part":
        texts = tuple(config.part_prompt.replace("{}", name) for name in names)
    tokenizer = build_tokenizer(config.tokenizer)
    _, valid = tokenizer(texts, config.context_length + 1)
    cut = [text for text, long in zip(texts, valid[:, -1], strict=True) if long]
    if cut:
        logging.warning(
            "%d of %d classes are longer than config.data.context_length=%d, e.g. %s",
            *(len(cut), len(names), config.context_length, shown(cut[0])),
        )
    return ClassList(names, granularity, *tokenizer(texts, config.context_length))


def label_settings(config: PipelineConfig) -> PipelineConfig:
    """The settings of rows of one image each, whose texts and masks are empty."""
    return dataclasses.replace(config, sampling="image", pairs=1, images=1)


def label_rows(records: int) -> RowTable:
    """A row for each record."""
    each, none = np.arange(records), np.zeros(records, np.int32)
    there = np.ones(records, bool)
    return RowTable(each.astype(np.int32), none, each, each + 1, there, np.zeros_like(each))


def label_map(record: Record, asked: Sequence[AskedClass]) -> np.ndarray:
    """The class of each pixel, i16 `[height, width]`; -1 where there is none.

    A target belongs to a class if it has the class's category and is no part, or if an expression
    with the class's text means it. Where targets of several classes overlap, the one that the record
    lists last covers the others, as painting them one after the other does.
    """
    of_category = {one.category: number for number, one in enumerate(asked) if one.category}
    of_text = {one.text: number for number, one in enumerate(asked)}
    classes = {
        k: of_category[target.category]
        for k, target in enumerate(record.targets)
        if target.granularity != "part" and target.category in of_category
    }
    for expression in record.expressions:
        if expression.text in of_text:
            classes |= dict.fromkeys(expression.targets, of_text[expression.text])
    labels = np.full((record.height, record.width), -1, np.int16)
    for target, number in sorted(classes.items()):
        labels[record.mask((target,)) > 0] = number
    return labels


@dataclasses.dataclass(frozen=True)
class MakeLabels(MakeRow):
    """Makes a batch of one image and its map of classes, like `MakeRow`.

    Attributes:
        asked: the list of classes.
    """

    asked: tuple[AskedClass, ...] = ()

    def _read(self, key: str, row: int, rng: np.random.Generator, left_out: list[str]) -> Example:
        del rng, left_out
        records, _ = self.rows.entries(row)
        return Example(key, (Frame(self.source[int(records[0])], ()),), ())

    def _pack(self, example: Example, tokenizer: Tokenizer, left_out: list[str]) -> HostBatch:
        del tokenizer
        batch = self._blank(example.key).batch
        (frame,) = example.frames
        record = frame.record
        assert batch.labels is not None and frame.image is not None and frame.affine is not None
        batch.image[0, 0], batch.affine[0, 0] = frame.image, frame.affine
        batch.size[0, 0] = record.height, record.width
        inside = (0, 0, slice(record.height), slice(record.width))
        batch.labels[inside] = label_map(record, self.asked)
        batch.valid[:] = True
        empty = ("",) * self.config.pairs
        ids = (record.image_id,)
        meta = RowMeta(example.key, ids, empty, empty, empty, left_out=tuple(left_out))
        return HostBatch(batch, (meta,), self.name)

    def _blank(self, key: str, error: str = "") -> HostBatch:
        return super()._blank(key, error)._replace(batch=blank_row(self.config, labels=True))
