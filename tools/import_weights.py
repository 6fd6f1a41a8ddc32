"""`python -m tools.import_weights`: see `refseg_jax.cli.import_weights`."""

import sys

from refseg_jax.cli.import_weights import main

if __name__ == "__main__":
    sys.exit(main())
