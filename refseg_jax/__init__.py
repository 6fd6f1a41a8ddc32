"""Language-guided segmentation at any granularity, in JAX."""
