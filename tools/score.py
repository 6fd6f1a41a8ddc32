"""`python -m tools.score`: see `refseg_jax.cli.score`."""

from refseg_jax.cli.score import main
from refseg_jax.cli.signals import leave

if __name__ == "__main__":
    leave(main())
