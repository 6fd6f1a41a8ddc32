"""The commands that need the library alone; `tools/X.py` calls them."""
