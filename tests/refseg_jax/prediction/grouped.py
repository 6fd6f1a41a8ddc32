"""A very small GRSer with CLIP's vocabulary, for the tests of predictions of groups."""

from typing import Any

import jax

from refseg_jax.models.graphs import forward_of
from tests.refseg_jax.models.small_grser import SMALL
from tests.refseg_jax.training.tiny_run import random_params, unires_run_config

#: Such that random parameters give masks that are neither empty nor full, and both answers.
THRESHOLD = 0.45

#: Rows of three images.
MODEL: dict[str, Any] = {
    **SMALL,
    "vocab_size": 49409,
    "eos_id": 49407,
    "group_size": 3,
    "margin": 0.08,
}


def grouped_config(model: dict[str, Any] = MODEL) -> dict[str, Any]:
    """The part of a run's config that a predictor reads."""
    config = unires_run_config(THRESHOLD, model)
    config["data"]["anti_prefix"] = "token"
    return config


def grouped_params() -> dict[str, jax.Array]:
    return random_params(forward_of(MODEL))
