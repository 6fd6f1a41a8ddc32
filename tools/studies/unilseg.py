"""Studies of UniLSeg."""

from tools.studies.study import SEED_NOISE, Row, Study, Table, Variant

UNILSEG_PARTS = Study(
    title="UniLSeg: Pre-Fusion, language path and vision path",
    text=(
        "UniLSeg on Scenes, by the recipe of `configs/scenes_unilseg.py` in fewer steps. This repeats",
        "the paper's Table 8, which is on RefCOCO, ADE20K and SOD. The paper does not describe its",
        "baseline. Here, it is the pyramid without attention, whose features are multiplied by a linear",
        "map of the sentence.",
    ),
    config="configs/scenes_unilseg.py",
    steps=200,
    fields=(
        "--config.loop.eval_every=0",
        "--config.evals.val.when=never",
        "--config.evals.shuffled.when=never",
        "--config.eval.dump=",
        "--config.eval.pictures=0",
    ),
    variants={
        "baseline": Variant(
            (
                "--config.model.pre_fusion=False",
                "--config.model.language_path=False",
                "--config.model.vision_path=False",
            )
        ),
        "PF": Variant(("--config.model.language_path=False", "--config.model.vision_path=False")),
        "PF LP": Variant(("--config.model.vision_path=False",)),
        "PF LP VP": Variant(),
    },
    metrics=("object/mIoU", "part/mIoU", "category/mIoU", "salient/mIoU", "mIoU"),
    tables=(
        Table(
            "parts",
            (
                Row("baseline", "baseline"),
                Row("+PF", "PF"),
                Row("+PF, +LP", "PF LP"),
                Row("+PF, +LP, +VP", "PF LP VP"),
            ),
        ),
    ),
    noise=SEED_NOISE,
)
