r"""ReLA on gRefCOCO: several targets, one, or none, with the schedule of its public code.

    python -m tools.build_dataset --dataset=grefcoco/unc_raw --source_dir=DIR --data_dir=data
    python main.py --config=configs/grefcoco_rela.py --workdir=runs/grefcoco_rela \
        --config.init.swin=microsoft/swin-base-patch4-window12-384-in22k \
        --config.init.bert=google-bert/bert-base-uncased

Recipe: Swin-B and BERT-base at 480 pixels, 150,000 steps of 48 expressions. AdamW at 1e-5, a tenth
of that from step 110,000 and again from 140,000; weight decay 0.05 except for norms outside BERT,
embeddings and position tables; gradients clipped at 0.01. BERT's embeddings and its last two layers
stay frozen.
The relationship block is the public code's; `--config.model.relationship=paper` selects the
paper's.

Memory: a step needs 2.8 GB of working memory for one image (f32, XLA's plan for a CPU); the batch
is cut over the devices. To need less: `--config.model.dtype=bfloat16`, `--config.model.remat=True`,
`--config.optim.accumulation=2` (the public code trains with mixed precision). An evaluation holds
16 images of 8 expressions each; `--config.eval.batch_size=4` needs less.

BERT's vocabulary comes from the hub too. Without a network, give a downloaded file or folder in
place of each name, and `--config.data.tokenizer=FILE` (a tokenizer.json) for the vocabulary.

Time and score: not run at full size here; COCO and the towers' weights are not at hand on this
project's machines. The paper reports cIoU / gIoU of 62.42 / 63.60 on val, 69.26 / 70.03 on testA
and 59.88 / 61.02 on testB. The released weights score 63.10 / 66.34 on val with the public code's
evaluator (`gres`): two users report it in issue 10 of its repository, and the authors confirm it.

Smoke test on one real image, from random weights and with CLIP's vocabulary: the command below
learnt the five referents of a testB sample (12 expressions, 2 without a target) to 94.3 gIoU, N-acc
1 and T-acc 1 in 80 steps (2.9 minutes of CPU time with compilation). A run of 50 steps reached
92.9, with the minimap still flat.

    python main.py --config=configs/grefcoco_rela.py:tiny --workdir=runs/overfit \
        --config.data.split=testB --config.steps=80 --config.batch_size=12 \
        --config.model.image_size=160 --config.loop.eval_every=0 \
        --config.evals.val.when=never --config.evals.testA.when=never
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import base_config, evaluation, rela, relation_objective

#: Embeddings and the last two layers of BERT-base: not in the public code's optimiser.
FROZEN = (
    r"text\.(word|position|type)_embedding\..*|text\.embedding_norm\..*|text\.layers\.(10|11)\..*"
)

#: What has no decay in the public code: norms outside BERT, tables of embeddings and of relative
#: positions. `train_net.py` adds the trained layers of BERT as one plain list, their norms included.
UNDECAYED = (
    r"(vision|pixels|regions)\..*norms?\..*|text\..*_embedding\..*|.*\.relative_positions"
    r"|regions\.(queries|places|level_embedding)"
)


def get_config(preset: str = "B") -> ConfigDict:
    """The experiment, of a model of some size."""
    config: Any = base_config()
    config.steps = 150_000
    config.batch_size = 48
    config.data.update(
        {
            "dataset": "grefcoco/unc_raw",
            "sampling": "expressions",
            "pairs": 1,
            "granularities": ("object", "multi", "none"),
            "resize": "stretch",
            "context_length": 20,
            "num_workers": 8,
        }
    )
    config.model = rela(preset)
    config.objective = relation_objective()
    config.optim.update(
        {
            "lr": 1e-5,
            "warmup": 0.0,
            "drops": (110 / 150, 140 / 150),
            "weight_decay": 0.05,
            "undecayed": UNDECAYED,
            "clip_norm": 0.01,
        }
    )
    if preset == "tiny":
        # From random weights and for a few hundred steps at most: the published rate moves nothing.
        config.data.num_workers = 0
        config.optim.update({"lr": 1e-3, "b2": 0.98, "warmup": 0.05, "drops": (), "clip_norm": 1.0})
    else:
        config.data.tokenizer = "bert-base-uncased"
        config.optim.lr_multipliers = ((FROZEN, 0.0), (r".*", 1.0))
    config.loop.update({"eval_every": 10_000, "save_every": 5_000})
    config.eval.update({"threshold": 0.5, "protocol": "gres"})
    config.evals.val = evaluation("val", prefix="val/", when="during")
    config.evals.testA = evaluation("testA", prefix="testA/")
    config.evals.testB = evaluation("testB", prefix="testB/")
    config.checkpoint.best_metric = "val/gIoU"
    return config
