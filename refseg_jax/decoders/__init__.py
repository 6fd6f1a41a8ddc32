"""Vision-language decoders and mask heads."""
