"""Loads the published towers from which a new run starts, as `config.init` names them."""

from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

from refseg_jax.errors import UserError
from refseg_jax.weights.clip_files import load_towers
from refseg_jax.weights.lavt import load_lavt
from refseg_jax.weights.towers import load_tower

#: Fields of `config.init` for a single tower; the name of the field is the kind of the tower.
SINGLE = ("swin", "bert")

#: All fields of `config.init` that name published towers.
TOWERS = ("clip", *SINGLE, "lavt")


def check_start(init: Any, model: Any) -> list[str]:
    """Checks `config.init` without reading a file.

    Args:
        init: `config.init`, as in `published_towers`.
        model: the model, with `TOWERS`.

    Returns:
        The fields of `init` that name a tower.

    Raises:
        UserError: the fields contradict each other, or the model has no such tower.
    """
    asked = [name for name in TOWERS if init[name]]
    if init.checkpoint and asked:
        raise UserError(
            f"config.init.checkpoint and config.init.{asked[0]} are both set: the checkpoint has "
            "towers of its own; leave one of the two empty"
        )
    if init.clip_sha256 and not init.clip:
        raise UserError("config.init.clip_sha256 is set and config.init.clip is not: set both")
    if init.lavt and len(asked) > 1:
        raise UserError(
            f"config.init.lavt and config.init.{asked[0]} are both set: LAVT has a Swin and a BERT of "
            "its own; leave one of the two empty"
        )
    for name in asked:
        if name not in model.TOWERS:
            known = " or ".join(f"config.init.{tower}" for tower in model.TOWERS)
            raise UserError(
                f"config.init.{name} is set, but the model has no such tower; set {known}"
            )
    return asked


def published_towers(
    init: Any, model: Any, target: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array] | None:
    """Loads the parameters of a model that published towers provide.

    Args:
        init: `config.init`, with `checkpoint`, `clip_sha256` and the fields of `TOWERS`. A tower is a
            file, a folder or a name on the hub; `""` means none.
        model: the model, with `config`, and `TOWERS`: field of `init` -> prefix of its parameters.
        target: path -> shape, dtype and `sharding` of every parameter of the model.

    Returns:
        Path -> array with the given sharding; `None` if no tower is set.

    Raises:
        UserError: the fields contradict each other, the model has no such tower, or the weights do
            not fit the model.
    """
    asked = check_start(init, model)
    params: dict[str, jax.Array] = {}
    for name in asked:
        prefix = model.TOWERS[name]
        if name == "clip":
            towers = load_towers(
                init.clip, target, model.config, sha256=init.clip_sha256, prefix=prefix
            )
        elif name == "lavt":
            towers = load_lavt(init.lavt, target=target)
        else:
            towers = load_tower(init[name], kind=name, prefix=prefix, target=target)
        logging.info("%d parameters are from %s", len(towers), init[name])
        params |= towers
    return params if asked else None
