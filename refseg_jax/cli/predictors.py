"""The flags by which commands open a predictor."""

import argparse

from refseg_jax.checkpoints.folder import step_choice
from refseg_jax.cli.command_line import expanded
from refseg_jax.errors import UserError
from refseg_jax.evaluation.thresholds import Thresholds
from refseg_jax.images.decoding import MAX_PIXELS
from refseg_jax.prediction.predictor import Predictor
from refseg_jax.prediction.tiles import Tiles


def add_predictor_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--checkpoint`, `--step`, `--thresholds` and `--max_pixels`, which `open_predictor` reads."""
    parser.add_argument(
        "--checkpoint",
        type=expanded,
        required=True,
        help="a run's workdir, one checkpoint, or an export, also hf://OWNER/NAME",
    )
    parser.add_argument("--step", default="latest", help="of a workdir: latest, best or a number")
    parser.add_argument(
        "--thresholds",
        default="config",
        metavar="config|calibrated|MASK[,PRESENCE]",
        help="config: those of the run; calibrated: those that tools.calibrate chose; or probabilities",
    )
    parser.add_argument(
        "--max_pixels",
        type=int,
        default=MAX_PIXELS,
        help="larger pictures are refused (height times width)",
    )


def add_tile_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--tile` and `--overlap`, which `tiles_of` reads."""
    parser.add_argument(
        "--tile", type=int, help="look at larger pictures in tiles of this side, in pixels"
    )
    parser.add_argument(
        "--overlap", type=int, help="pixels that tiles share; a quarter of a tile by default"
    )


def open_predictor(options: argparse.Namespace) -> Predictor:
    """The predictor that the flags mean.

    Raises:
        UserError: see `Predictor.from_checkpoint`; or a flag has a value that is none of its own.
    """
    if options.max_pixels < 1:
        raise UserError(f"--max_pixels={options.max_pixels}: give at least 1")
    return Predictor.from_checkpoint(
        options.checkpoint,
        step=step_choice(options.step),
        thresholds=parse_thresholds(options.thresholds),
        max_pixels=options.max_pixels,
    )


def parse_thresholds(text: str) -> Thresholds | str:
    """The value of `--thresholds`.

    Raises:
        UserError: it is none.
    """
    if text in ("config", "calibrated"):
        return text
    try:
        values = [float(part) for part in text.split(",")]
        if not 1 <= len(values) <= 2:
            raise ValueError
    except ValueError:
        raise UserError(
            f"--thresholds={text}: give config, calibrated, or the mask's probability (0.5), with a "
            "comma before that of presence (0.5,0.3)"
        ) from None
    mask, *presence = values
    return Thresholds(mask, presence[0]) if presence else Thresholds(mask)


def tiles_of(options: argparse.Namespace) -> Tiles | None:
    """The tiles that the flags mean; `None` without `--tile`.

    Raises:
        UserError: there is `--overlap` alone, or tiles do not advance.
    """
    if options.tile is None:
        if options.overlap is not None:
            raise UserError("--overlap is for --tile; give both or none")
        return None
    return Tiles(options.tile, options.overlap)
