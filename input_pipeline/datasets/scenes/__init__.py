"""The embedded dataset: drawn scenes, and expressions that are verified against their graph."""
