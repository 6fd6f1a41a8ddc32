r"""UniLSeg pre-trained on pseudo labels of SA-1B: the first stage of its training (section 4.1).

    python -m tools.build_dataset --dataset=jsonl --name=sa1b_pseudo --source_dir=LINES --data_dir=DIR
    python main.py --config=configs/unilseg_pretrain.py --workdir=runs/unilseg_pretrain \
        --config.data.data_dir=DIR \
        --config.init.swin=microsoft/swin-base-patch4-window7-224-in22k \
        --config.init.clip=openai/clip-vit-base-patch16

Data: SA-1B has masks without words. The paper's engine (RAM, Grounding DINO, SAM, CLIP as filter)
writes new masks and captions, which are not public; nor is the engine. Any engine can write the lines
of a dataset of your own, as files or tar shards (docs/own_data.md). `B,NAME,...` takes other names than
`sa1b_pseudo`, in equal shares. Patches are hidden with a probability of 0.2.

Recipe: 192 devices with 8 images each, 5 epochs, Adam at 5e-5 and a tenth of that for the backbone.
Fewer devices want a smaller batch, e.g. `--config.batch_size=256`. The paper states no decay of the
rate for this stage: it stays constant. Everything else is as in `configs/unilseg.py`. The evaluation
during training is on val of RefCOCO, which this stage has not seen.

Time and score: not run at full size here. Figure 5 of the paper shows what this stage is worth.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import unilseg
from configs.common import evaluation


def get_config(choice: str = "B") -> ConfigDict:
    """The experiment, of a model of some size, on pseudo-labelled datasets: `B,NAME,...`."""
    preset, *datasets = choice.split(",")
    config: Any = unilseg.get_config(preset)
    config.epochs = 5.0
    config.batch_size = 1536
    config.mixture = ConfigDict()
    unilseg.add_pseudo_labels(config, datasets or ["sa1b_pseudo"], weight=1.0)
    config.optim.update({"lr": 5e-5, "drops": (), "end_lr_share": 1.0})
    config.evals = ConfigDict()
    config.evals.val = evaluation("val", prefix="val/", when="during")
    return config
