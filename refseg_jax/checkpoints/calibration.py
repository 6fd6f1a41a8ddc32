"""Thresholds that a validation split has chosen, kept beside the checkpoint that they belong to.

`<workdir>/checkpoints/1200.calibration.json` is that of step 1200. No file of the checkpoint changes. It
names the digest of the parameters, so that it is not taken for that of another run, and has a digest of
its own. An export keeps the same values in its `config.json`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refseg_jax.errors import UserError
from refseg_jax.storage import buckets

_AGAIN = "calibrate again with tools.calibrate"


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What `tools.calibrate` found.

    Attributes:
        mask: a pixel is in the mask where its probability is larger, in (0, 1).
        presence: something matches where the presence head's probability is larger, in (0, 1); `None`
            for a model without a presence head.
        parameters: `digest` of the parameters.
        dataset, split: what they were chosen on.
        rule: how the presence threshold was chosen, as text.
        scores: name -> score on that split, before (`config/...`) and after (`calibrated/...`).
    """

    mask: float
    presence: float | None
    parameters: str
    dataset: str
    split: str
    rule: str
    scores: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """The calibration as JSON values, with its own digest."""
        fields = dataclasses.asdict(self)
        return {**fields, "sha256": _own_digest(fields)}

    @classmethod
    def from_json(cls, content: Any, source: object) -> "Calibration":
        """Reads what `as_json` returned.

        Args:
            content: JSON values.
            source: the file, for errors.

        Raises:
            UserError: it was changed, or is none.
        """
        try:
            fields = {name: value for name, value in content.items() if name != "sha256"}
            found = cls(**fields)
            if content["sha256"] != _own_digest(fields):
                raise UserError(f"{source}: changed since it was written; {_AGAIN}")
            if not all(0.0 < p < 1.0 for p in (found.mask, found.presence or 0.5)):
                raise ValueError("a threshold is not between 0 and 1")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{source}: not a calibration ({error}); {_AGAIN}") from None
        return found

    def check_parameters(self, params: Mapping[str, Any], source: object) -> None:
        """Checks that the thresholds belong to these parameters.

        Raises:
            UserError: they are those of others.
        """
        if digest(params) != self.parameters:
            raise UserError(f"{source}: the calibration of other parameters; {_AGAIN}")


def digest(params: Mapping[str, Any]) -> str:
    """SHA-256 of parameters: of their paths, types, shapes and values.

    Args:
        params: dotted path -> array.
    """
    found = hashlib.sha256()
    for path in sorted(params):
        array = np.ascontiguousarray(np.asarray(params[path]))
        found.update(f"{path} {array.dtype} {array.shape}\n".encode())
        found.update(array.reshape(-1).view(np.uint8))
    return found.hexdigest()


def place(directory: Path, step: int) -> Path:
    """The file of a step's calibration in a checkpoints folder."""
    return directory / f"{step}.calibration.json"


def read(path: Path) -> Calibration | None:
    """Reads a calibration; `None` if there is none.

    Raises:
        UserError: the file is damaged.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); {_AGAIN}") from None
    return Calibration.from_json(content, path)


def write(path: Path, calibration: Calibration) -> None:
    """Writes a calibration, complete or not at all."""
    buckets.write(path, (json.dumps(calibration.as_json(), indent=1) + "\n").encode())


def _own_digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
