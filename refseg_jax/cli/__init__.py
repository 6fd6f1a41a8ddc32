"""Commands that need only this library, for example `python -m refseg_jax.cli.predict`.

In a checkout, the modules of `tools/` with the same names call them.
"""
