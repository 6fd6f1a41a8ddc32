r"""A trained GRSer on GRD, the present descriptions of D3.

    python -m tools.build_dataset --dataset=d3/pres --source_dir=DIR --data_dir=data
    python main.py --config=configs/grd_eval.py --workdir=runs/grd \
        --mode=eval --config.init.checkpoint=runs/grefc_grser

Every group of about 100 images is cut into rows of 8, by the names of its images, for each of its
descriptions. The last row is filled up by images that count once. Scores with negatives have plain keys
(`mIoU`, `Em`, `Rneg` of `grd`). `positives/cris/mIoU` is the mIoU of the paper's "RES setting": images
with a target alone, whose masks count whatever the distances say.

`--config=configs/grd_eval.py:tiny` takes a checkpoint of preset `tiny`. `--config.data.images=1` asks
every image alone, as a group of one.

Time and score: not run; neither D3's images nor trained weights are at hand on this project's machines.
The paper reports `mIoU` 57.12, `Em` 51.5 and `Rneg` 81.09 with negatives (Table 5) and mIoU 47.25
without (Table 2).
"""

from typing import Any

from ml_collections import ConfigDict

from configs import grefc_grser
from configs.common import evaluation


def get_config(preset: str = "B") -> ConfigDict:
    """The evaluations, of a model of some size."""
    config: Any = grefc_grser.get_config(preset)
    config.mixture = ConfigDict()
    config.data.dataset = "d3/pres"
    # The size of D3's largest image is not stated. If one is larger than the canvas, the run stops
    # before the first row, and names the size that is needed.
    config.eval.update({"protocol": "grd,cris", "canvas": (1024, 1024)})
    config.evals = ConfigDict()
    config.evals.test = evaluation("test", when="during")
    config.evals.positives = evaluation("test", prefix="positives/", positives_only=True)
    config.checkpoint.best_metric = "mIoU"
    return config
