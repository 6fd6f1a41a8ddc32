"""`python -m tools.export`: see `refseg_jax.cli.export`."""

from refseg_jax.cli.export import main
from refseg_jax.cli.signals import leave

if __name__ == "__main__":
    leave(main())
