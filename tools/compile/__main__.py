"""`python -m tools.compile`."""

from refseg_jax.cli.signals import leave
from tools.compile import main

if __name__ == "__main__":
    leave(main())
