"""Fixtures shared by all tests."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest

_SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real samples, which is not part of the repository."""
    if not _SHARED_DATA.is_dir():
        pytest.skip(f"the real samples are not at {_SHARED_DATA}")
    return _SHARED_DATA


@pytest.fixture(scope="module")
def one_compilation() -> Iterator[None]:
    """Every call of `tools.predict` would compile anew; those of a module share what they load."""
    # Late: most modules do not need JAX.
    from refseg_jax.prediction.predictor import Predictor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "from_checkpoint", functools.cache(Predictor.from_checkpoint))
        yield
