"""Reads the description of exported graphs from `config.json`, for the engines."""

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
    """Description of the three graphs.

    Attributes:
        files: graph -> name of its file.
        params: graph -> paths of the parameters that it takes; none if it holds its weights itself.
        image_size, mask_stride: see `refseg_jax.prediction.engines.Engine`.
        model: the fields of the model's config, as attributes.
        group_size: see `refseg_jax.prediction.engines.Engine`.
    """

    files: dict[str, str]
    params: dict[str, list[str]]
    image_size: int
    mask_stride: int
    model: Any
    group_size: int | None


def read_description(path: Path, config: ExportConfig) -> Description:
    """Reads the description of a folder's graphs.

    Args:
        path: the exported folder.
        config: its config.

    Raises:
        UserError: the description is incomplete, or `data.context_length` differs from the length of
            texts that the graphs take.
    """
    try:
        graphs = config.graphs
        _, (*rows, size, _, _) = graphs["encode_image"]["inputs"]["image"]
        _, (_, _, length) = graphs["encode_text"]["inputs"]["text"]
        _, (*_, cells, _) = graphs["decode"]["outputs"]["mask_logits"]
        files = {name: str(graphs[name]["file"]) for name in GRAPHS}
        given = config.data["context_length"]
        params = {name: list(graphs[name].get("params", ())) for name in GRAPHS}
        model = types.SimpleNamespace(**config.model)
        # Rows of a group have an axis of images.
        group_size = model.group_size if len(rows) == 2 else None
        stride = size // cells
        description = Description(files, params, size, stride, model, group_size)
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
