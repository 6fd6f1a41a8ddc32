"""With which published towers a new run begins: what `config.init` says of them."""

from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

from refseg_jax.errors import UserError
from refseg_jax.weights.clip_files import load_towers
from refseg_jax.weights.towers import load_tower

#: Fields of `config.init` that name a single tower, and its kind.
SINGLE = ("swin", "bert")


def published_towers(
    init: Any, model: Any, target: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array] | None:
    """The parameters that published weights give a model.

    Args:
        init: `config.init`: `clip` and `clip_sha256`, or any of `SINGLE`, each a file, a folder or a
            name on the hub, `""` for none.
        model: has `config`, and `TOWERS`: field of `init` -> prefix of its parameters.
        target: path -> shape, dtype and `sharding` of every parameter.

    Returns:
        Path -> array, laid out; `None` where no field is set.

    Raises:
        UserError: fields that contradict one another, a tower that the model does not have, or weights
            that do not fit.
    """
    asked = [name for name in ("clip", *SINGLE) if init[name]]
    if init.checkpoint and asked:
        raise UserError(
            f"config.init.checkpoint and config.init.{asked[0]} are both set: the checkpoint has "
            "towers of its own; leave one of the two empty"
        )
    if init.clip_sha256 and not init.clip:
        raise UserError("config.init.clip_sha256 is set and config.init.clip is not: set both")
    for name in asked:
        if name not in model.TOWERS:
            known = " or ".join(f"config.init.{tower}" for tower in model.TOWERS)
            raise UserError(
                f"config.init.{name} is set, but the model has no such tower; set {known}"
            )
    params: dict[str, jax.Array] = {}
    for name in asked:
        if name == "clip":
            towers = load_towers(init.clip, target, model.config, sha256=init.clip_sha256)
        else:
            towers = load_tower(init[name], kind=name, prefix=model.TOWERS[name], target=target)
        logging.info("%d parameters are from %s", len(towers), init[name])
        params |= towers
    return params if asked else None
