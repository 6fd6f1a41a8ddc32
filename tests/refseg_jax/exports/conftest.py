"""Fixtures shared by the tests of this folder."""

from tests.refseg_jax.layers.compiling import in_a_hurry as in_a_hurry
