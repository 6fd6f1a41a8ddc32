"""The fields that every experiment has, with the defaults of the code base."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from refseg_jax.images.decoding import MAX_PIXELS
from refseg_jax.images.preprocess import BORDER
from refseg_jax.models.grser_config import grser_config
from refseg_jax.models.rela_config import rela_config
from refseg_jax.models.unilseg_config import unilseg_config
from refseg_jax.models.unires_config import unires_config
from refseg_jax.sharding import MeshConfig
from refseg_jax.training.loop import LoopConfig
from refseg_jax.training.objectives import (
    GroupObjective,
    MaskObjective,
    PromptObjective,
    RelationObjective,
)
from refseg_jax.training.optim import OptimConfig


def base_config() -> ConfigDict:
    """All fields of an experiment; each config file changes what it needs.

    Most groups of fields become a dataclass or the arguments of one class, whose docstring explains
    them: `data` (`input_pipeline.settings.PipelineConfig`), `model` (`refseg_jax.models`), `objective`
    (`refseg_jax.training.objectives`), `optim` (`refseg_jax.training.optim.OptimConfig`), `loop`
    (`refseg_jax.training.loop.LoopConfig`), `mesh` (`refseg_jax.sharding.MeshConfig`), `checkpoint`
    (`refseg_jax.checkpoints.checkpointer.Checkpointer`).
    """
    config: Any = ConfigDict()
    config.seed = 0

    # Length of training, in updates or in epochs. Set one and leave the other at 0.
    config.steps = 0
    config.epochs = 0.0
    config.batch_size = 32

    # Initial weights of a new run, random by default; a run that resumes ignores them.
    # `checkpoint`: all parameters of another run (a workdir, one checkpoint, or an exported folder).
    # `clip`, or `swin` and `bert`: published towers; the other parameters stay random. Each is a
    # weight file, its folder, or a name on the hub; `clip` also a folder of tools.import_weights.
    # `lavt`: the file of a released LAVT, for both towers and the fusion between them.
    # `clip_sha256`: digest of the CLIP file, checked if it is given.
    config.init = ConfigDict(
        {"checkpoint": "", "clip": "", "clip_sha256": "", "swin": "", "bert": "", "lavt": ""}
    )

    config.data = ConfigDict(
        {
            "data_dir": "data",
            "dataset": "scenes",
            "split": "train",
            "sampling": "image",
            "pairs": 8,
            "images": 1,
            "negatives": 0.5,
            "granularities": ("object", "part", "multi", "category", "salient"),
            "resize": "letterbox",
            "mask_cells": "mean",
            "context_length": 17,
            "tokenizer": "clip",
            "anti_prefix": "",
            "flip_probability": 0.0,
            "part_prompt": "{}",
            "pseudo_labelled": False,
            "hide_probability": 0.2,
            "hide_cells": 7,
            "hide_colour": BORDER,
            "num_workers": 0,
            "threads": 2,
            "prefetch": 4,
            "max_wait": 600.0,
            "max_pixels": MAX_PIXELS,
        }
    )

    # Several datasets in one training: name -> `member(...)`. Empty: train on `config.data` alone.
    # Members take the fields that they do not set from `config.data`.
    config.mixture = ConfigDict()

    config.model = unires("B/16")
    config.objective = ConfigDict({"name": "mask", **dataclasses.asdict(MaskObjective())})
    config.optim = ConfigDict(dataclasses.asdict(OptimConfig()))
    config.loop = ConfigDict(dataclasses.asdict(LoopConfig()))
    config.mesh = ConfigDict(dataclasses.asdict(MeshConfig()))

    # `dir`: keeps `checkpoints` and what a resumed run must know in the place of the workdir; on a disk
    # or in a bucket (gs://...), a folder of its own for each run. "": the workdir.
    config.checkpoint = ConfigDict(
        {"dir": "", "keep_latest": 2, "keep_best": 1, "best_metric": "mIoU"}
    )

    # How to evaluate. `config.evals` lists the evaluations.
    config.eval = ConfigDict(
        {"batch_size": 16, "pairs": 8, "canvas": (640, 640), "threshold": 0.35, "pictures": 8}
    )
    # How logits become a mask of the image's own size, see `refseg_jax.images.resize.logits_on_canvas`:
    # bilinear `logits`, or the steps of a public code: `cris`, `unilseg`. Predictions do the same.
    config.eval.resample = "logits"
    # Names from docs/protocols.md, separated by commas. Scores of the first have plain keys; keys of
    # the others begin with the protocol's name ("gres/gIoU").
    config.eval.protocol = "cris"
    # For gres and gres_paper: a mask with fewer pixels than this, at 480 x 480, counts as "absent", and
    # the presence head is ignored (ReLA's paper: 50). 0: the head decides.
    config.eval.min_pixels = 0
    # For every_class: pixels without a class are "ignored", or a "class" of their own that is predicted
    # where no class is above `threshold`, see `refseg_jax.evaluation.protocols.categories.EveryClass`.
    config.eval.background = "ignored"
    config.evals = ConfigDict()
    # Folder in the workdir for predictions and references of the last step's evaluations; "": none.
    config.eval.dump = ""
    # Split on which to score an oracle that knows the target's category but not the words; "": none.
    config.eval.oracle = ""
    return config


def unires(preset: str, **fields: Any) -> ConfigDict:
    """All fields of a UniRES: those of a preset, with `fields` replaced."""
    model = dataclasses.asdict(unires_config({"preset": preset, **fields}))
    return ConfigDict({"name": "unires", **model})


def rela(preset: str, **fields: Any) -> ConfigDict:
    """All fields of a ReLA: those of a preset, with `fields` replaced."""
    model = dataclasses.asdict(rela_config({"preset": preset, **fields}))
    return ConfigDict({"name": "rela", **model})


def unilseg(preset: str, **fields: Any) -> ConfigDict:
    """All fields of a UniLSeg: those of a preset, with `fields` replaced."""
    model = dataclasses.asdict(unilseg_config({"preset": preset, **fields}))
    return ConfigDict({"name": "unilseg", **model})


def grser(preset: str, **fields: Any) -> ConfigDict:
    """All fields of a GRSer: those of a preset, with `fields` replaced."""
    model = dataclasses.asdict(grser_config({"preset": preset, **fields}))
    return ConfigDict({"name": "grser", **model})


def relation_objective() -> ConfigDict:
    """All fields of ReLA's objective."""
    return ConfigDict({"name": "relation", **dataclasses.asdict(RelationObjective())})


def prompt_objective() -> ConfigDict:
    """All fields of UniLSeg's objective."""
    return ConfigDict({"name": "prompt", **dataclasses.asdict(PromptObjective())})


def group_objective() -> ConfigDict:
    """All fields of GRSer's objective."""
    return ConfigDict({"name": "group", **dataclasses.asdict(GroupObjective())})


def member(
    *, weight: float = 1.0, keep_held_out: tuple[str, ...] = (), batch_size: int = 0, **own: Any
) -> ConfigDict:
    """One entry of `config.mixture`.

    Args:
        weight: share of the batches, relative to the sum of all weights.
        keep_held_out: evaluation sets whose images may be trained on, e.g. `"refcoco/google/val"`,
            `"refcoco/google"`, `"*"`. Images of all other built evaluation sets are left out.
        batch_size: rows of the member's batches; 0 takes `config.batch_size`.
        own: fields that replace those of `config.data`, out of
            `input_pipeline.mixtures.MEMBER_FIELDS`.
    """
    common = {"weight": weight, "keep_held_out": keep_held_out, "batch_size": batch_size}
    return ConfigDict({**common, **own})


def evaluation(
    split: str,
    *,
    dataset: str = "",
    granularities: tuple[str, ...] = (),
    prefix: str = "",
    when: str = "final",
    shuffled: bool = False,
    positives_only: bool = False,
) -> ConfigDict:
    """One entry of `config.evals`.

    Args:
        split: the split to score.
        dataset: the dataset; `""` takes that of `config.data`.
        granularities: granularities of the expressions to score; empty takes those of `config.data`.
        prefix: beginning of the scores' keys, e.g. `"shuffled/"`.
        when: `"during"` (during training and after it), `"final"` (after it) or `"never"`.
        shuffled: replace each expression by one of another target, to see whether the model reads the
            words (`input_pipeline.transforms.ShuffleText`).
        positives_only: leave out pairs of an image and an expression that means nothing in it.
    """
    return ConfigDict(
        {
            "dataset": dataset,
            "split": split,
            "granularities": granularities,
            "prefix": prefix,
            "when": when,
            "shuffled": shuffled,
            "positives_only": positives_only,
        }
    )
