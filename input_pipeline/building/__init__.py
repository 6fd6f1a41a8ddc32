"""Records to ArrayRecord files: builders, shards, worker processes, Beam, counts."""
