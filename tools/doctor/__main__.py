"""`python -m tools.doctor`."""

from refseg_jax.cli.signals import leave
from tools.doctor import main

if __name__ == "__main__":
    leave(main())
