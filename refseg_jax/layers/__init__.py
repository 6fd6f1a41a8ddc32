"""Small modules of which the towers and decoders are built."""
