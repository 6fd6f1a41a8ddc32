"""TFDS builders, one folder per dataset, all writing the one record of `input_pipeline.schema`."""
