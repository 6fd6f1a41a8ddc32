"""Studies of UniRES."""

from tools.studies.study import Row, Study, Table, Variant

GROUP_TOKENS = Study(
    title="Group tokens on and off",
    text=(
        "UniRES on Scenes, by the recipe of `configs/scenes_unires.py` in fewer steps. This repeats the",
        "paper's Table 8, which is on RefCOCOm. Without any group token the second decoding stage goes",
        "too, as in the paper.",
    ),
    config="configs/scenes_unires.py",
    steps=300,
    fields=(
        "--config.loop.eval_every=0",
        "--config.evals.val.when=never",
        "--config.evals.shuffled.when=never",
        "--config.eval.oracle=",
        "--config.eval.dump=",
        "--config.eval.pictures=0",
    ),
    variants={
        "both": Variant(),
        "low only": Variant(("--config.model.high_tokens=0",)),
        "high only": Variant(("--config.model.low_tokens=0",)),
        "none": Variant(("--config.model.low_tokens=0", "--config.model.high_tokens=0")),
    },
    metrics=("object/mIoU", "part/mIoU", "multi/mIoU", "mIoU"),
    tables=(
        Table(
            "group tokens",
            tuple(Row(name, name) for name in ("both", "low only", "high only", "none")),
        ),
    ),
)
