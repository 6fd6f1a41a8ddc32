r"""A trained GRSer on CoCA: co-salient objects, asked for by the name of their category.

    python -m tools.build_dataset --dataset=coca --source_dir=DIR --data_dir=data
    python main.py --config=configs/coca_eval.py --workdir=runs/coca \
        --mode=eval --config.init.checkpoint=runs/grefc_grser

The images of a category are a group, cut into rows of 8 by their names. Protocol `sod` scores the map of
probabilities of every image, and no distance empties it: all images of CoCA have their object.

`--config=configs/coca_eval.py:tiny` takes a checkpoint of preset `tiny`.

Time and score: not run; neither CoCA nor trained weights are at hand on this project's machines. The
paper reports MAE 0.099, Fmax 0.562, Sm 0.712 and Em 0.728 (Table 3).
"""

from typing import Any

from ml_collections import ConfigDict

from configs import grefc_grser
from configs.common import evaluation


def get_config(preset: str = "B") -> ConfigDict:
    """The evaluation, of a model of some size."""
    config: Any = grefc_grser.get_config(preset)
    config.mixture = ConfigDict()
    config.data.dataset = "coca"
    # The size of CoCA's largest image is not stated. If one is larger than the canvas, the run stops
    # before the first row, and names the size that is needed.
    config.eval.update({"protocol": "sod", "canvas": (1024, 1024)})
    config.evals = ConfigDict()
    config.evals.test = evaluation("test", when="during")
    config.checkpoint.best_metric = "Sm"
    return config
