"""The fields that every experiment has, with the defaults of the code base."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from refseg_jax.images.preprocess import MAX_PIXELS
from refseg_jax.models.rela_config import rela_config
from refseg_jax.models.unires_config import unires_config
from refseg_jax.sharding import MeshConfig
from refseg_jax.training.loop import LoopConfig
from refseg_jax.training.objectives import MaskObjective, RelationObjective
from refseg_jax.training.optim import OptimConfig


def base_config() -> ConfigDict:
    """All fields of an experiment; each config file changes what it needs.

    Fields and their meaning stand with the dataclasses that are made of them: `data`
    (`input_pipeline.pipeline.PipelineConfig`), `model` (`refseg_jax.models`), `objective`
    (`refseg_jax.training.objectives`), `optim` (`refseg_jax.training.optim.OptimConfig`), `loop`
    (`refseg_jax.training.loop.LoopConfig`), `mesh` (`refseg_jax.sharding.MeshConfig`).
    """
    config: Any = ConfigDict()
    config.seed = 0

    # Exactly one of the two is set; the other is 0.
    config.steps = 0
    config.epochs = 0.0
    config.batch_size = 32

    # Where a new run begins: with the parameters of another one (its workdir, one checkpoint, or what
    # tools.export made of it), or with published towers and random weights around them: CLIP's (a
    # weight file, its folder, a name on the hub, a folder that tools.import_weights wrote; the SHA-256
    # of the file is checked where it is given), or a Swin and a BERT (file, folder or name). "" is
    # random weights alone. A run that resumes looks at none.
    config.init = ConfigDict(
        {"checkpoint": "", "clip": "", "clip_sha256": "", "swin": "", "bert": ""}
    )

    config.data = ConfigDict(
        {
            "data_dir": "data",
            "dataset": "scenes",
            "split": "train",
            "sampling": "image",
            "pairs": 8,
            "images": 1,
            "granularities": ("object", "part", "multi", "category", "salient"),
            "resize": "letterbox",
            "context_length": 17,
            "tokenizer": "clip",
            "flip_probability": 0.0,
            "num_workers": 0,
            "threads": 2,
            "prefetch": 4,
            "max_pixels": MAX_PIXELS,
        }
    )

    # Several datasets in one training, by names of their own: `member(...)` each. Empty trains on
    # what `config.data` says, which is also what members have in common.
    config.mixture = ConfigDict()

    config.model = unires("B/16")
    config.objective = ConfigDict({"name": "mask", **dataclasses.asdict(MaskObjective())})
    config.optim = ConfigDict(dataclasses.asdict(OptimConfig()))
    config.loop = ConfigDict(dataclasses.asdict(LoopConfig()))
    config.mesh = ConfigDict(dataclasses.asdict(MeshConfig()))

    config.checkpoint = ConfigDict({"keep_latest": 2, "keep_best": 1, "best_metric": "mIoU"})

    # How to evaluate; `config.evals` says on what.
    config.eval = ConfigDict(
        {"batch_size": 16, "pairs": 8, "canvas": (640, 640), "threshold": 0.35, "pictures": 8}
    )
    # Names out of docs/protocols.md, with commas between them. The first one's scores have plain keys,
    # those of another begin with its name ("gres/gIoU").
    config.eval.protocol = "cris"
    # For gres and gres_paper: not the presence head decides that nothing is there, but a mask of fewer
    # than so many of 480 x 480 pixels (50 in ReLA's paper); 0 asks the head.
    config.eval.min_pixels = 0
    config.evals = ConfigDict()
    # A folder below the workdir for the predictions and references of the last step's evaluations; ""
    # writes none.
    config.eval.dump = ""
    # Score an oracle that knows the kind but not the words on this split; "" leaves it out.
    config.eval.oracle = ""
    return config


def unires(preset: str, **fields: Any) -> ConfigDict:
    """All fields of a UniRES of some preset, so that each can be overridden on the command line."""
    model = dataclasses.asdict(unires_config({"preset": preset, **fields}))
    return ConfigDict({"name": "unires", **model})


def rela(preset: str, **fields: Any) -> ConfigDict:
    """All fields of a ReLA of some preset."""
    model = dataclasses.asdict(rela_config({"preset": preset, **fields}))
    return ConfigDict({"name": "rela", **model})


def relation_objective() -> ConfigDict:
    """ReLA's objective."""
    return ConfigDict({"name": "relation", **dataclasses.asdict(RelationObjective())})


def member(*, weight: float = 1.0, keep_held_out: tuple[str, ...] = (), **own: Any) -> ConfigDict:
    """One entry of `config.mixture`.

    Args:
        weight: its share of the batches is this over the sum of all weights.
        keep_held_out: evaluation sets whose images it trains on nevertheless (it leaves out those of
            every set that is built): `"refcoco/google/val"`, `"refcoco/google"`, `"*"`.
        own: fields of `config.data` that are its own: `input_pipeline.mixtures.MEMBER_FIELDS`.
    """
    return ConfigDict({"weight": weight, "keep_held_out": keep_held_out, **own})


def evaluation(
    split: str,
    *,
    dataset: str = "",
    granularities: tuple[str, ...] = (),
    prefix: str = "",
    when: str = "final",
    shuffled: bool = False,
) -> ConfigDict:
    """One entry of `config.evals`.

    Args:
        split: the dataset's split.
        dataset: `""` for that of `config.data`.
        granularities: which expressions are scored; none for those of `config.data`.
        prefix: what the keys of the scores begin with, e.g. `"shuffled/"`.
        when: `"during"` training and after it, `"final"` (after it only) or `"never"`.
        shuffled: replace each expression by that of another target of its kind or scene.
    """
    return ConfigDict(
        {
            "dataset": dataset,
            "split": split,
            "granularities": granularities,
            "prefix": prefix,
            "when": when,
            "shuffled": shuffled,
        }
    )
