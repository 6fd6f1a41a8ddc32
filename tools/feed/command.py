"""Can a host feed its devices? Measures what one core of the training pipeline delivers.

    python -m tools.feed --config=configs/scenes_unires.py
    python -m tools.feed --config=configs/refcoco_unires.py --data_dir=data --dataset=scenes
    python -m tools.feed --config=... --images_per_second=2000 --config.data.resize=stretch

It makes the batches that `main.py` trains on, for each member of a mixture, in one thread, and prints
the time of each stage: reading, JPEG, mirroring, warp, masks, words, rows, batches. The times are those
in which the core worked, so that other programs and a slow disk change them little.

`--images_per_second` is what the devices of this machine take, e.g. "images/s a host" of
`tools.compile`. The last line then says how many cores are short.

The time depends on the size of the pictures. `--dataset` measures another dataset of `--data_dir` in the
place of the config's, if that is not built here.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from input_pipeline import mixtures
from input_pipeline.experiment_data import ExperimentData
from input_pipeline.mixtures import Member
from input_pipeline.sources import DatasetError, built_datasets, dataset_folder, has_records
from refseg_jax.cli.command_line import (
    Result,
    add_json_flag,
    command_parser,
    ended,
    expanded,
    path,
)
from refseg_jax.errors import UserError
from refseg_jax.models import model_config
from tools.compile.experiment import read_config
from tools.feed.figures import measure, own_cores, rate_of, table, verdict
from tools.feed.timing import TimedRows


def feed(config: Any, *, seconds: float, images_per_second: float = 0.0) -> Result:
    """Measures the training rows of a config, and prints the figures.

    Args:
        config: as of `main.py`.
        seconds: seconds of work for each member of a mixture.
        images_per_second: what the devices take; 0: no line on them.

    Returns:
        The figures of each member, and the rate of all.

    Raises:
        UserError: a field of the config is invalid, or a dataset cannot be read.
    """
    model = model_config(config.model.to_dict())
    data = ExperimentData(config, model.image_size, model.mask_stride)
    members = mixtures.read_members(config.mixture.to_dict(), data.settings)
    for member in members:
        _check_built(member)
    mixture = mixtures.open_mixture(members)
    found, batches = [], []
    for member, rows in zip(members, mixture.rows, strict=True):
        batch_size = member.batch_size or config.batch_size
        figures = measure(TimedRows.of(rows), batch_size, config.seed, seconds)
        print(table(figures), flush=True)
        found.append(figures)
        batches.append(member.weight * batch_size)
    rate = rate_of(found, batches)
    if len(found) > 1:
        print(f"all members by their weights: {rate:.1f} images/s of one core")
    if images_per_second:
        print(verdict(rate, images_per_second, own_cores()))
    figures = [{**dataclasses.asdict(one), "images": one.images} for one in found]
    return Result({"members": figures, "images_per_second": rate, "cores": own_cores()})


def _check_built(member: Member) -> None:
    data = member.data
    try:
        dataset_folder(data.data_dir, data.dataset)
    except DatasetError as error:
        built = built_datasets(data.data_dir)
        others = ", ".join(name for name, folder in built.items() if has_records(folder))
        cure = f"measure another one: --dataset=NAME of {others}" if others else "give --data_dir"
        raise UserError(f"{error}; or {cure}") from None


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command, without the fields of the config."""
    parser = command_parser("tools.feed", __doc__)
    parser.add_argument("--config", type=path, required=True, help="as of main.py, with its fields")
    parser.add_argument("--data_dir", type=expanded, help="in the place of config.data.data_dir")
    parser.add_argument("--dataset", help="in the place of the config's dataset or mixture")
    parser.add_argument(
        "--images_per_second", type=_positive, default=0.0, help="what the devices here take"
    )
    parser.add_argument(
        "--seconds", type=_positive, default=10.0, help="of work, for each member of a mixture"
    )
    add_json_flag(parser, "the figures")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no positive number")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    fields = [argument for argument in given if argument.startswith("--config.")]
    options = make_parser().parse_args([argument for argument in given if argument not in fields])

    def work() -> Result:
        config = read_config([f"--config={options.config}", *fields], "tools.feed")
        if options.data_dir:
            config.data.data_dir = options.data_dir
        if options.dataset:
            config.data.dataset = options.dataset
            with config.unlocked():
                config.mixture = {}
        return feed(config, seconds=options.seconds, images_per_second=options.images_per_second)

    return ended(work, report=options.json)
