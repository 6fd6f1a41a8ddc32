"""What the tests of this folder share."""

from collections.abc import Iterator

import pytest

from tests.refseg_jax.exports.folders import compiling_in_a_hurry


@pytest.fixture(scope="module", autouse=True)
def in_a_hurry() -> Iterator[None]:
    with compiling_in_a_hurry():
        yield
