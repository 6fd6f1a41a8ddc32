"""Writes a model as a folder that runs elsewhere, in one of several formats.

`source.py` reads the checkpoint, `exporter.py` writes the folder, and `folder.py` has its layout.
`refseg_jax.prediction.reader` computes masks from the folder.
"""
