"""A config of the smallest model of each system: `--config=tests/tools/compile/small.py:rela`."""

import importlib
from typing import Any

from ml_collections import ConfigDict

from configs import common
from tests.refseg_jax.models import micro, rela_test, small_grser, small_unilseg

#: System -> fields of its preset `tiny` that make it smaller.
FIELDS: dict[str, dict[str, Any]] = {
    "unires": micro.FIELDS,
    "rela": rela_test.SMALL,
    # At 32 pixels, a check of libtpu 0.0.50.1 fails for v5e (fusion_util.cc:5194).
    "unilseg": {**small_unilseg.SMALL, "image_size": 64},
    "grser": small_grser.SMALL,
}


def get_config(system: str) -> ConfigDict:
    """The config of the system on Scenes, in bf16 and without Muon, which takes long to compile."""
    config: Any = importlib.import_module(f"configs.scenes_{system}").get_config()
    fields = {k: v for k, v in FIELDS[system].items() if k not in ("name", "preset")}
    config.model = getattr(common, system)("tiny", **fields, dtype="bfloat16")
    config.optim.muon = ""
    config.batch_size = 8
    config.mixture = ConfigDict()
    config.data.context_length = 12
    config.data.pairs = min(config.data.pairs, 2)
    config.eval.update({"batch_size": 8, "pairs": config.data.pairs, "canvas": (64, 64)})
    return config
