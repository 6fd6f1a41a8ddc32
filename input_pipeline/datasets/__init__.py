"""The datasets, one module or folder each, all converted to the record of `input_pipeline.schema`."""
