"""The smallest UniLSeg with all parts and batch normalisation."""

from typing import Any

SMALL: dict[str, Any] = {
    "name": "unilseg",
    "preset": "tiny",
    "image_size": 32,
    "mask_stride": 2,
    "swin_width": 16,
    "swin_depths": (1, 1),
    "swin_heads": (1, 2),
    "window": 4,
    "vocab_size": 512,
    "eos_id": 511,
    "text_width": 64,
    "text_layers": 1,
    "embedding_width": 24,
    "width": 32,
    "heads": 2,
    "hidden": 96,
    "mask_width": 16,
    "query_layers": 2,
    "norm": "batch",
}
