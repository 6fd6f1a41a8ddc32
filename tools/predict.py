"""`python -m tools.predict`: see `refseg_jax.cli.predict`."""

from refseg_jax.cli.predict import main
from refseg_jax.cli.signals import leave

if __name__ == "__main__":
    leave(main())
