"""Facts about published datasets, as data."""
