"""`python -m tools.score`: see `refseg_jax.cli.score`."""

import sys

from refseg_jax.cli.score import main

if __name__ == "__main__":
    sys.exit(main())
