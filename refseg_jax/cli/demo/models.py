"""The models of a demo, opened once and tried."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import PurePath

import numpy as np

from refseg_jax.errors import UserError
from refseg_jax.evaluation.thresholds import Thresholds
from refseg_jax.prediction.predictor import Predictor
from refseg_jax.storage.hub import on_hub

#: Side of the picture on which a model is tried, in pixels.
_TRIED = 64


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of a demo.

    Attributes:
        name: by which the page and the API choose it.
        predictor: answers.
        head: whether it has a presence head.
    """

    name: str
    predictor: Predictor
    head: bool


def open_models(
    checkpoints: Sequence[str], thresholds: Thresholds | str, max_pixels: int
) -> dict[str, Model]:
    """Opens models, and asks each a first question, so that what is broken is told at the start.

    Args:
        checkpoints: runs, checkpoints, exports, or `hf://OWNER/NAME`.
        thresholds, max_pixels: as in `Predictor.from_checkpoint`.

    Returns:
        Name -> model, in order.

    Raises:
        UserError: there is none, one is given twice, or one cannot be opened.
    """
    if not checkpoints:
        raise UserError("--checkpoint: missing; give a run, a checkpoint or an export")
    found = {}
    for name, path in names_of(checkpoints).items():
        predictor = Predictor.from_checkpoint(path, thresholds=thresholds, max_pixels=max_pixels)
        grey = np.full((_TRIED, _TRIED, 3), 128, np.uint8)
        (answer,) = predictor.predict(grey, ["anything"])
        found[name] = Model(name, predictor, answer.presence is not None)
    return found


def names_of(checkpoints: Sequence[str]) -> Mapping[str, str]:
    """Name -> checkpoint: the shortest end of its path that tells it from the others.

    The page shows names. They tell as little as possible about the disk of the server.

    Raises:
        UserError: a checkpoint is given twice.
    """
    if len({*checkpoints}) < len(checkpoints):
        raise UserError("--checkpoint: one is given twice")
    parts = {path: (path,) if on_hub(path) else PurePath(path).parts for path in checkpoints}
    longest = max(map(len, parts.values()), default=0)
    for length in range(1, longest + 1):
        names = {"/".join(one[-length:]) or path: path for path, one in parts.items()}
        if len(names) == len(checkpoints):
            return names
    return {path: path for path in checkpoints}
