"""Image and text encoders (towers)."""
