"""Pixels outside the network: decoding, resizing, masks as RLE and polygons, drawing."""
