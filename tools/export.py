"""`python -m tools.export`: see `refseg_jax.cli.export`."""

import sys

from refseg_jax.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
