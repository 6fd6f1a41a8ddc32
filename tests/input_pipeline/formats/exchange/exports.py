"""Small exports of other tools, for tests; and the streams of Label Studio's brush."""

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.formats.exchange.lines import Collected
from refseg_jax.evaluation.predictions import encode
from tests.input_pipeline.datasets.jsonl_folders import LEFT, RIGHT, SIZE

HEIGHT, WIDTH = SIZE
#: The polygon of `LEFT`, `square(2, 3)`.
LEFT_POLYGON = [3, 2, 7, 2, 7, 6, 3, 6]


def picture(path: Path, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def lines_of(collected: Collected, stem: str = "train") -> list[dict[str, Any]]:
    """The lines of a split, which must be as `jsonl` reads them, with their masks decoded."""
    found = []
    for image in collected.images(stem):
        assert [line.text for line in image.lines()]
        found += [json.loads(line) for _, line in image.stored]
    return found


def said(lines: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    """(picture, expression) -> region."""
    return {(line["image"], line["expression"]): line["segmentation"] for line in lines}


def coco(**fields: Any) -> dict[str, Any]:
    """A picture with two cats and a dog: a polygon, RLE, and RLE with a list of counts, as in CVAT."""
    counts = np.diff(np.flatnonzero(np.diff(RIGHT.T.ravel(), prepend=0, append=1) != 0), prepend=0)
    return {
        "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            _annotation(1, 1, [LEFT_POLYGON], caption="the left cat", bbox=[3, 2, 4, 4]),
            _annotation(2, 1, encode(RIGHT)),
            _annotation(
                3,
                2,
                {"size": list(SIZE), "counts": counts.tolist()},
                iscrowd=1,
                attributes={"occluded": False, "expression": "a small dog"},
            ),
        ],
        **fields,
    }


def _annotation(number: int, category: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    fields = {"id": number, "image_id": 1, "category_id": category, "iscrowd": 0}
    return {**fields, "segmentation": segmentation, **more}


def fiftyone_mask(mask: np.ndarray, form: str = "binary") -> Any:
    with io.BytesIO() as file:
        np.save(file, mask, allow_pickle=False)
        text = base64.b64encode(zlib.compress(file.getvalue())).decode()
    return {
        "text": text,
        "binary": {"$binary": {"base64": text, "subType": "00"}},
        "old": {"$binary": text, "$type": "00"},
    }[form]


def detection(top: int, left: int, side: int, label: str, **more: Any) -> dict[str, Any]:
    """A detection whose mask fills its box."""
    box = [left / WIDTH, top / HEIGHT, side / WIDTH, side / HEIGHT]
    fields = {"_cls": "Detection", "label": label, "bounding_box": box}
    return {**fields, "mask": fiftyone_mask(np.ones((side, side), bool)), **more}


def sample(*detections: Any, name: str = "data/a.png", **more: Any) -> dict[str, Any]:
    found = {"_cls": "Detections", "detections": list(detections)}
    return {"_id": {"$oid": "0"}, "filepath": name, "ground_truth": found, **more}


def brush(
    mask: np.ndarray, sizes: tuple[int, ...] = (3, 4, 8, 16), lists: bool = False
) -> list[int]:
    """A mask packed as thi.ng/rle-pack has it: runs of one value, or lists of values."""
    values = np.repeat(mask.ravel() * 255, 4).astype(int).tolist()
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    at = 0
    while at < len(values):
        end = at + 1
        longest = min(at + 2 ** sizes[-1], len(values))
        while end < longest and values[end] == values[at]:
            end += 1
        # Where runs are short, a list of whatever comes.
        is_list = lists and end - at <= 8
        end = min(at + 7, len(values)) if is_list else end
        which = next(i for i, size in enumerate(sizes) if end - at <= 2**size)
        bits += f"{int(not is_list)}{which:02b}{end - at - 1:0{sizes[which]}b}"
        bits += "".join(f"{v:08b}" for v in (values[at:end] if is_list else values[at : at + 1]))
        at = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def result(identity: str, kind: str, **value: Any) -> dict[str, Any]:
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    return {"id": identity, "type": kind, "value": value, **size, "to_name": "image"}


def task(
    *results: Any, image: str = "/data/upload/1/0123abcd-a.png", **more: Any
) -> dict[str, Any]:
    made = {"id": 1, "was_cancelled": False, "result": list(results)}
    return {"id": 7, "data": {"image": image}, "annotations": [made], **more}


def left_polygon() -> list[list[float]]:
    """`LEFT` in per cent, as Label Studio has it."""
    xs, ys = LEFT_POLYGON[::2], LEFT_POLYGON[1::2]
    return [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in zip(xs, ys, strict=True)]


__all__ = ["LEFT", "RIGHT"]
