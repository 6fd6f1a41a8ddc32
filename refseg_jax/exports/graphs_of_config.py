"""What `config.json` says of exported graphs, as the engines read it."""

import dataclasses
import types
from pathlib import Path
from typing import Any

from refseg_jax.errors import UserError
from refseg_jax.exports import folder
from refseg_jax.exports.folder import ExportConfig
from refseg_jax.models.graphs import GRAPHS


@dataclasses.dataclass(frozen=True)
class Description:
    """Of the three graphs.

    Attributes:
        files: graph -> file of the folder.
        params: graph -> the parameters that it takes, none where they are inside it.
        image_size, mask_stride: see `refseg_jax.prediction.engines.Engine`.
        model: the fields of the model's config.
    """

    files: dict[str, str]
    params: dict[str, list[str]]
    image_size: int
    mask_stride: int
    model: Any


def read_description(path: Path, config: ExportConfig) -> Description:
    """The description of an exported folder's graphs.

    Raises:
        UserError: it is none, or texts have another length than the graphs take.
    """
    try:
        graphs = config.graphs
        _, (_, size, _, _) = graphs["encode_image"]["inputs"]["image"]
        _, (_, _, length) = graphs["encode_text"]["inputs"]["text"]
        _, (_, _, cells, _) = graphs["decode"]["outputs"]["mask_logits"]
        files = {name: str(graphs[name]["file"]) for name in GRAPHS}
        given = config.data["context_length"]
        params = {name: list(graphs[name].get("params", ())) for name in GRAPHS}
        model = types.SimpleNamespace(**config.model)
        description = Description(files, params, size, size // cells, model)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{path / folder.CONFIG}: it does not describe the graphs ({error}); export again"
        ) from None
    if given != length:
        raise UserError(
            f"{path / folder.CONFIG}: data.context_length={given}, but the graphs take texts of "
            f"{length} tokens; put {length} back, or export another run"
        )
    return description
