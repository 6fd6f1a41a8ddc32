"""Fixtures shared by all tests."""

import os
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
