r"""UniLSeg fine-tuned on ADE20K's 150 classes, the in-vocabulary setting of its Table 5.

    python -m tools.build_dataset --dataset=ade20k/150 --source_dir=DIR --data_dir=data
    python main.py --config=configs/ade20k_unilseg.py --workdir=runs/ade20k_unilseg \
        --config.init.checkpoint=runs/unilseg

The prompts are "all {}" (Table 1). Training asks an image for the classes that it shows; the
evaluation asks every image for all 150 and gives each pixel to the class with the largest logit
(`every_class`).

Recipe: not stated in the paper; that of `configs/unilseg.py`. An epoch is every class of every image
once. The checkpoint's batch normalisation wants large batches. For small ones, freeze it, so that it
keeps its running averages; gradients can then be accumulated, too:

    --config.optim.lr_multipliers='((r".*_path\..*\.norms?\..*",0.0),(r"vision\..*",0.1),(".*",1.0))'

Time and score: not run at full size here. The paper reports 45.2 (UniLSeg-20) and 49.5 (UniLSeg-100)
mIoU.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import unilseg, unilseg_eval


def get_config(preset: str = "B") -> ConfigDict:
    """The experiment, of a model of some size."""
    config: Any = unilseg.get_config(preset)
    config.mixture = ConfigDict()
    config.data.update({"dataset": "ade20k/150", "granularities": ("category",)})
    config.loop.eval_every = 20_000
    unilseg_eval.set_evaluations(config, unilseg_eval.BENCHMARKS["ade20k"])
    return config
