"""What the tests of this folder share."""

from tests.refseg_jax.layers.compiling import in_a_hurry as in_a_hurry
