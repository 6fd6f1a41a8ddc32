"""Commands that need only this library: `refseg predict` and the others of `refseg_jax.cli.commands`.

In a checkout, the modules of `tools/` with the same names call them.
"""

import sys

from refseg_jax.cli import signals

# Python says so while it looks for the module that it will run; other programs import this package.
if sys.argv[0] == "-m":
    signals.heed_early()
