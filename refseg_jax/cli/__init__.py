"""Commands that need only this library; the modules of `tools/` with the same names call them."""
