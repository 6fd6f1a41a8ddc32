"""`python -m tools.predict`: see `refseg_jax.cli.predict`."""

import sys

from refseg_jax.cli.predict import main

if __name__ == "__main__":
    sys.exit(main())
