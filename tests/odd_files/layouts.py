"""Published layouts that hold polygons and boxes, written with the segmentation of a line as it is.

Each way takes the folder (`train.jsonl` with one line and its picture) and an empty folder to work in.
"""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from refseg_jax.cli import score
from tests.odd_files.ways import Seen, build, run, write_files

_COCO_NAME = "000000000007.jpg"


def _line(folder: Path) -> tuple[Any, bytes, int, int]:
    """Segmentation, picture, and its height and width."""
    fields = json.loads((folder / "train.jsonl").read_text(encoding="utf-8"))
    path = folder / fields["image"]
    with Image.open(path) as image:
        width, height = image.size
    region = fields["segmentation"]
    if region == "box":
        x, y, wide, high = fields["box"]
        region = [[x, y, x + wide, y, x + wide, y + high, x, y + high]]
    return region, path.read_bytes(), height, width


def _instances(folder: Path, name: str, category: str) -> tuple[str, bytes]:
    """An `instances.json` of one image and one annotation without a box, and the picture."""
    region, data, height, width = _line(folder)
    stored = {
        "images": [{"id": 7, "file_name": name, "height": height, "width": width}],
        "annotations": [{"id": 70, "image_id": 7, "category_id": 3, "segmentation": region}],
        "categories": [{"id": 3, "name": category}],
    }
    return json.dumps(stored), data


def refer(folder: Path, room: Path) -> Seen:
    """RefCOCO."""
    instances, data = _instances(folder, f"COCO_train2014_{_COCO_NAME}", "box")
    sentence = {"sent_id": 0, "raw": "the box", "sent": "the box", "tokens": []}
    ref = {
        "ref_id": 0, "ann_id": 70, "image_id": 7, "category_id": 3, "split": "train",
        "file_name": "x", "sentences": [sentence], "sent_ids": [0],
    }  # fmt: skip
    files: dict[str, bytes | str] = {
        "refcoco/instances.json": instances,
        "refcoco/refs(unc).p": pickle.dumps([ref], protocol=2),
        f"images/train2014/COCO_train2014_{_COCO_NAME}": data,
    }
    return build("refcoco/unc", room, write_files(room / "source", files))


def grefcoco(folder: Path, room: Path) -> Seen:
    """gRefCOCO, whose refs are JSON."""
    instances, data = _instances(folder, f"COCO_train2014_{_COCO_NAME}", "box")
    sentence = {"sent_id": 0, "raw": "the box", "sent": "the box", "tokens": []}
    ref = {
        "ref_id": 0, "ann_id": [70], "image_id": 7, "split": "train", "sentences": [sentence],
        "no_target": False,
    }  # fmt: skip
    files: dict[str, bytes | str] = {
        "grefcoco/instances.json": instances,
        "grefcoco/grefs(unc).json": json.dumps([ref]),
        f"images/train2014/COCO_train2014_{_COCO_NAME}": data,
    }
    return build("grefcoco/unc", room, write_files(room / "source", files))


def paco(folder: Path, room: Path) -> Seen:
    """PACO-LVIS."""
    instances, data = _instances(folder, _COCO_NAME, "box")
    files: dict[str, bytes | str] = {
        "annotations/paco_lvis_v1_train.json": instances,
        f"train2017/{_COCO_NAME}": data,
    }
    return build("paco_lvis", room, write_files(room / "source", files))


def partimagenet(folder: Path, room: Path) -> Seen:
    """PartImageNet."""
    instances, data = _instances(folder, "n01440764_10029.JPEG", "Box Lid")
    files: dict[str, bytes | str] = {
        "train.json": instances,
        "train/n01440764/n01440764_10029.JPEG": data,
    }
    return build("partimagenet/seg", room, write_files(room / "source", files))


def d3_json(folder: Path, room: Path) -> Seen:
    """D3's COCO files."""
    instances, data = _instances(folder, "a.jpg", "the box")
    files: dict[str, bytes | str] = {
        "d3_json/d3_pres_annotations.json": instances,
        "d3_images/a.jpg": data,
    }
    return build("d3/pres_json", room, write_files(room / "source", files), split="test")


def d3(folder: Path, room: Path) -> Seen:
    """D3's pickles."""
    region, data, height, width = _line(folder)
    image = {
        "id": 7, "file_name": "a.jpg", "height": height, "width": width, "anno_id": [70],
        "group_id": 1,
    }  # fmt: skip
    tables = {
        "images": {7: image},
        "annotations": {70: {"image_id": 7, "sent_id": [0], "segmentation": region}},
        "sentences": {0: {"is_negative": False, "raw_sent": "the box"}},
        "groups": {1: {"inner_sent_id": [0], "group_name": "box"}},
    }
    files: dict[str, bytes | str] = {
        **{f"d3_pkl/{name}.pkl": pickle.dumps(table) for name, table in tables.items()},
        "d3_images/a.jpg": data,
    }
    return build("d3/full", room, write_files(room / "source", files), split="test")


def phrasecut(folder: Path, room: Path) -> Seen:
    """PhraseCut, whose polygons are lists of points."""
    region, data, height, width = _line(folder)
    points = [[list(p) for p in zip(flat[::2], flat[1::2], strict=True)] for flat in region]
    task = {
        "task_id": "7__0", "image_id": 7, "phrase": "the box", "Polygons": [points],
        "phrase_structure": {"name": "box", "type": "name"},
    }  # fmt: skip
    listed = {"image_id": 7, "coco_id": None, "split": "train", "height": height, "width": width}
    files: dict[str, bytes | str] = {
        "image_data_split3000.json": json.dumps([listed]),
        "refer_train.json": json.dumps([task]),
        "images/7.jpg": data,
    }
    return build("phrasecut", room, write_files(room / "source", files))


def sa1b(folder: Path, room: Path) -> Seen:
    """SA-1B."""
    region, data, height, width = _line(folder)
    mask = {"id": 1, "segmentation": region, "predicted_iou": 1.0, "stability_score": 1.0}
    stored = {"image": {"image_id": 7, "height": height, "width": width}, "annotations": [mask]}
    files: dict[str, bytes | str] = {"sa_7.jpg": data, "sa_7.json": json.dumps(stored)}
    return build("sa1b", room, write_files(room / "source", files))


def references(folder: Path, room: Path) -> Seen:
    """`tools.score`, with the line as the reference of an empty prediction."""
    region, _, height, width = _line(folder)
    empty = {"size": [height, width], "counts": [height * width]}
    paths = []
    for name, segmentation in (("P", empty), ("R", region)):
        paths.append(room / f"{name}.jsonl")
        paths[-1].write_text(json.dumps({"id": "1", "segmentation": segmentation}))
    flags = ("--protocol=cris", f"--predictions={paths[0]}", f"--references={paths[1]}")
    return Seen(*run(score.main, *flags))


#: Name of a way -> the way.
LAYOUTS: dict[str, Callable[[Path, Path], Seen]] = {
    f"{layout.__name__} as it is": layout
    for layout in (
        refer, grefcoco, paco, partimagenet, d3_json, d3, phrasecut, sa1b, references,
    )
}  # fmt: skip
