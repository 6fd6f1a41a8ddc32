"""A model leaves the project and comes back: formats by name, all of them one folder.

`exporter.py` writes the folder, `reader.py` computes masks from it, `folder.py` is its layout, and
`source.py` is what it is made of.
"""
