"""`python -m tools.feed`."""

from refseg_jax.cli.signals import leave
from tools.feed import main

if __name__ == "__main__":
    leave(main())
