"""RefCOCO, RefCOCO+ and RefCOCOg in the layout of the `refer` repository."""
