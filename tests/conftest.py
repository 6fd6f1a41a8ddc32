"""Fixtures shared by all tests."""

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest

if TYPE_CHECKING:
    from tests.hub_server import Hub

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


@pytest.fixture(scope="session")
def bucket_server() -> Iterator[dict[str, str]]:
    """An emulated bucket `gs://bucket`: the environment by which clients find it, set here."""
    from tests.bucket_emulator import emulated

    with emulated() as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        yield found


@pytest.fixture
def bucket(bucket_server: dict[str, str], request: pytest.FixtureRequest) -> Path:
    """An empty folder of its own in the emulated bucket."""
    from refseg_jax.storage.buckets import located

    return located(f"gs://bucket/{re.sub('[^a-z0-9_]', '-', request.node.name)}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Hub"]:
    """An empty hub on this machine, which the client in this process takes for the real one."""
    from huggingface_hub import constants

    from tests.hub_server import served

    with served() as found:
        url = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, found.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        # The client reads the environment once, in which another test may have put this.
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield found
