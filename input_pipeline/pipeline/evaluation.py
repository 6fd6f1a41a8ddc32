"""Batches of every expression, or of every image, of a split."""

import dataclasses
from collections.abc import Callable

import grain

from input_pipeline import labels, transforms, workers
from input_pipeline.making import MakeRow
from input_pipeline.pipeline.expressions import checked_rows, chosen, tell_left_out, tell_texts
from input_pipeline.pipeline.iteration import batched, iterate, never, own_share
from input_pipeline.rows import GROUPED, RowTable, make_rows
from input_pipeline.settings import PipelineConfig, check_settings
from input_pipeline.sources import ExpressionTable, RecordSource
from input_pipeline.transforms import Transform
from input_pipeline.workers import Batches
from refseg_jax.batch import ClassList
from refseg_jax.errors import UserError


def eval_batches(
    config: PipelineConfig, *, batch_size: int, process_index: int = 0, process_count: int = 1,
    stop: Callable[[], bool] = never,
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
    process_count: int = 1, stop: Callable[[], bool] = never,
) -> Batches:  # fmt: skip
    """Yields every image of a split once, with the class of each pixel; pads the last batch.

    Args:
        config: which data to read; `pairs`, `images` and `granularities` are not used.
        granularity: `"category"` or `"part"`, see `input_pipeline.labels.asked_classes`.
        batch_size, process_index, process_count, stop: as in `train_batches`.

    Raises:
        UserError: as in `eval_batches`, or the dataset has no such classes.
    """
    config = labels.label_settings(config)
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
    check_settings(config)
    source = RecordSource(config.data_dir, config.dataset, config.split)
    _check_canvas(config, ExpressionTable.of(source, config.tokenizer))
    return source


def _padded(
    make: MakeRow, batch_size: int, process_index: int, process_count: int, stop: Callable[[], bool]
) -> Batches:
    """This process's batches of all rows, the last of which is padded."""
    config, count = make.config, len(make.rows)
    padded = -(-count // batch_size) * batch_size
    share = own_share(batch_size, process_count)
    dataset = grain.MapDataset.range(padded).seed(0).random_map(make)
    dataset = batched(dataset[process_index::process_count], share)
    number = workers.evaluation_workers(config.num_workers, len(dataset))
    return iterate(dataset, dataclasses.replace(config, num_workers=number), stop)


def check_eval(config: PipelineConfig) -> None:
    """Raises the errors that `eval_batches` would raise.

    Logs which expressions are not scored, and which are cut.
    """
    _, source, _, table = _eval_rows(config)
    if not config.shuffled_text:
        tell_left_out(config, table)
        tell_texts(config, source, chosen(config, table), "not scored", "config.data")


def _eval_rows(
    config: PipelineConfig,
) -> tuple[PipelineConfig, RecordSource, RowTable, ExpressionTable]:
    if config.sampling not in GROUPED:
        config = dataclasses.replace(config, sampling="expressions")
    check_settings(config)
    source = RecordSource(config.data_dir, config.dataset, config.split)
    table = ExpressionTable.of(source, config.tokenizer)
    used = table.of_targets() if config.positives_only else table
    rows = make_rows(
        used, config.sampling, config.granularities, pairs=config.pairs, images=config.images
    )
    _check_canvas(config, table)
    return config, source, checked_rows(config, rows), table


def _check_canvas(config: PipelineConfig, table: ExpressionTable) -> None:
    if len(config.canvas) != 2:
        raise UserError(f"config.eval.canvas={config.canvas}: give a height and a width")
    if (table.largest > config.canvas).any():
        raise UserError(
            f"{config.dataset} {config.split}: images are up to {table.largest[0]} x "
            f"{table.largest[1]} (height x width), the canvas is {config.canvas}; set "
            "config.eval.canvas to at least that"
        )
