"""`python -m tools.demo`: see `refseg_jax.cli.demo.command`."""

from refseg_jax.cli.demo.command import main
from refseg_jax.cli.signals import leave

if __name__ == "__main__":
    leave(main())
