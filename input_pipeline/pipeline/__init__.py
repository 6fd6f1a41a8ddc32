"""Makes batches from built datasets, with grain.

The order of the stages makes runs repeatable: shuffle and repeat all rows, transform each row with
random numbers seeded by its index, take this process's rows, then batch. So the global batches are the
same for any number of processes, and a run can resume on another number of them.
"""

from input_pipeline.pipeline.evaluation import (
    check_eval,
    eval_batches,
    label_batches,
    open_classes,
)
from input_pipeline.pipeline.iteration import iterate
from input_pipeline.pipeline.training import TrainRows, open_train, train_batches
from input_pipeline.settings import PipelineConfig

__all__ = [
    "PipelineConfig",
    "TrainRows",
    "check_eval",
    "eval_batches",
    "iterate",
    "label_batches",
    "open_classes",
    "open_train",
    "train_batches",
]
