"""RefCOCO, RefCOCO+, RefCOCOg and the datasets made from them or stored in the same layout."""
