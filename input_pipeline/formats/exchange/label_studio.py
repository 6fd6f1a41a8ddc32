"""Reads Label Studio's JSON: brushes, polygons, and the texts and choices of their regions.

A file is a list of tasks. A task has its picture in `data`, and results in `annotations` or, before
anybody has annotated it, in `predictions`. A region is a result with a brush's `rle` or a polygon's
`points` (in per cent), its labels, and a `textarea` or `choices` of the same `id`
(labelstud.io/guide/task_format, labelstud.io/tags/brushlabels).

Texts of a region are its expressions; without one, its choices are. Its labels are its categories.
"""

import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from input_pipeline.building.conversion import BuildError, SourceError
from input_pipeline.formats.exchange.brush import BrushError, decode_brush
from input_pipeline.formats.exchange.lines import NO_MASK, Collected, is_sure, split_files
from input_pipeline.formats.json_stream import elements, integer, words
from input_pipeline.formats.places import Places
from refseg_jax.images.kinds import has_suffix

#: Notes in the report of a build.
SEVERAL = "tasks that several people annotated, of which one annotation is read"
CANCELLED = "tasks without an annotation, left out"
LOOSE = "texts and choices that belong to no region, left out"

#: What Label Studio puts before the name of a picture that was uploaded.
_UPLOADED = re.compile(r"[0-9a-f]{8}-")

_LABELS = ("brushlabels", "polygonlabels", "labels")


def read(places: Places) -> dict[str, Collected]:
    """Reads the pictures of each split of an export.

    Args:
        places: the folders that may hold the files; the first has the JSON.

    Raises:
        SourceError: a file is missing, damaged or not Label Studio's JSON.
        BuildError: a region does not fit its picture.
    """
    collected: dict[str, Collected] = {}
    for split, file in split_files(places.folder, "[").items():
        collected[split] = Collected()
        for number, (_, task) in enumerate(elements(file), 1):
            where = f"{file}: task {number}"
            try:
                if isinstance(task.get("id"), int):
                    where = f"{file}: task {task['id']}"
                _task(task, where, collected[split], places)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                reason = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise SourceError(
                    f"{where} is not Label Studio's ({' '.join(reason.split())[:120]}); export as JSON, "
                    "not JSON-MIN"
                ) from None
    return collected


def _task(task: Mapping[str, Any], where: str, collected: Collected, places: Places) -> None:
    name = _picture(task["data"], where, places)
    made = [one for one in task.get("annotations") or [] if not one.get("was_cancelled")]
    made = [one for one in made if one.get("ground_truth")] or made
    made = made or task.get("predictions") or []
    if not made:
        collected.notes[CANCELLED] += 1
        return
    if len(made) > 1:
        collected.notes[SEVERAL] += 1
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for number, result in enumerate(made[0]["result"]):
        if "value" in result:  # A relation between regions has none.
            grouped.setdefault(result.get("id") or f"#{number}", []).append(result)
    for identity, results in grouped.items():
        # What is said of a region repeats its geometry.
        drawn = [one for one in results if {"rle", "points"} & one["value"].keys()]
        if drawn:
            place = f"{where}: region {identity:.40}"
            _region(drawn[0], results, name, place, collected)
        else:
            words_alone = all(one["type"] in ("textarea", "choices") for one in results)
            collected.notes[LOOSE if words_alone else NO_MASK] += 1


def _region(
    drawn: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    name: str,
    where: str,
    collected: Collected,
) -> None:
    if drawn.get("image_rotation"):
        raise BuildError(
            f"{where}: the picture was turned by {drawn['image_rotation']} degrees in Label Studio; "
            "turn it back there, or save the picture upright"
        )
    size = integer(drawn["original_height"]), integer(drawn["original_width"])
    collected.picture(name, size, where)
    if not is_sure(drawn, "score", collected.notes):
        return
    values = [one["value"] for one in results]
    said = _listed(values, ("text",)) or _listed(values, ("choices",))
    collected.add(
        name,
        where,
        _segmentation(drawn["value"], size, where),
        texts=said,
        categories=_listed(values, _LABELS),
    )


def _segmentation(value: Mapping[str, Any], size: tuple[int, int], where: str) -> Any:
    if "points" in value:
        scale = np.array([size[1], size[0]]) / 100
        return [(np.array(value["points"], np.float64).reshape(-1, 2) * scale).ravel().tolist()]
    if value.get("format", "rle") != "rle":
        raise ValueError(f"a brush of the format {value['format']!r:.40}")
    try:
        mask = decode_brush(value["rle"], *size)
    except BrushError as error:
        raise BuildError(f"{where}: {error}; export it again") from None
    rle: Any = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(size), "counts": rle["counts"].decode()}


def _listed(values: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> list[Any]:
    """The texts in some fields of the results of a region."""
    found: list[Any] = []
    for value in values:
        for field in fields:
            texts = value.get(field, [])
            found += texts if isinstance(texts, list) else [texts]
    return list(dict.fromkeys(words(text) for text in found))


def _picture(data: Mapping[str, Any], where: str, places: Places) -> str:
    """The name of the task's picture among the user's files."""
    texts = [text for text in (data.get("image"), *data.values()) if isinstance(text, str)]
    given = [text for text in texts if has_suffix(_path(text))]
    if not given:
        raise BuildError(f"{where}: 'data' has no picture; name it 'image' in the labelling setup")
    path = _path(given[0])
    base = path.rpartition("/")[2]
    names = [path, path.lstrip("/"), base, _UPLOADED.sub("", base, count=1)]
    # As uploaded, pictures lie in media/upload/PROJECT.
    names.append(path.removeprefix("/data/"))
    found = [name for name in names if places.has(name)]
    found += [f"images/{name}" for name in names[2:4] if places.has(f"images/{name}")]
    if not found:
        raise BuildError(
            f"{where}: the picture {names[3]!r:.80} is in no folder; copy it beside the export, or give "
            "--image_dir=FOLDER"
        )
    return found[0]


def _path(address: str) -> str:
    """The path of a picture in what Label Studio calls it: an address, or a local file's."""
    parts = urllib.parse.urlsplit(address)
    local = urllib.parse.parse_qs(parts.query).get("d")
    return (local[0] if local else urllib.parse.unquote(parts.path)).replace("\\", "/")
