"""Command lines of the project, e.g. `python -m tools.build_dataset`."""

# First of all, for what it does on Ctrl-C.
import refseg_jax.cli  # noqa: F401
