"""`python -m tools.import_weights`: see `refseg_jax.cli.import_weights`."""

from refseg_jax.cli.import_weights import main
from refseg_jax.cli.signals import leave

if __name__ == "__main__":
    leave(main())
