"""Small modules that the towers and decoders are made of."""
