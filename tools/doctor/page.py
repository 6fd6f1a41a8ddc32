"""Writes the page of `tools.doctor`: a table of findings, pictures of them, and samples."""

import base64
import dataclasses
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from input_pipeline.checks import Finding
from input_pipeline.schema import Record
from refseg_jax.images.decoding import ImageError, decode_image
from refseg_jax.images.segmentation import SegmentationError
from refseg_jax.images.sheets import fit, fit_regions

#: Longer side of a picture in pixels.
_SIDE = 320

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 72em; color: #222 }
table { border-collapse: collapse } td, th { padding: .2em .8em; border-bottom: 1px solid #ddd }
th { text-align: left } td.number { text-align: right } .fault { color: #b3261e }
figure { display: inline-block; margin: .5em; width: 320px; vertical-align: top }
figure img { max-width: 320px } figcaption { font-size: 12px; overflow-wrap: anywhere }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto }
"""


@dataclasses.dataclass(frozen=True)
class Example:
    """A finding, with a JPEG of its image, or `None` if no picture is shown."""

    finding: Finding
    picture: bytes | None


@dataclasses.dataclass(frozen=True)
class Sample:
    """A JPEG of an image with the targets of an expression drawn on it, and a line about it."""

    caption: str
    picture: bytes


def sample_of(record: Record, split: str, turn: int) -> Sample | None:
    """Draws an expression of a record, or all targets of a record without expressions.

    Args:
        record: the record.
        split: name of its split, for the caption.
        turn: chooses the expression; successive numbers choose different ones.

    Returns:
        The sample, or `None` if the image is damaged.
    """
    try:
        image = _decoded(record)
    except ImageError:
        return None
    said = [e for e in record.expressions if e.targets] or record.expressions
    if said:
        expression = said[turn % len(said)]
        targets = expression.targets
        words = f"“{expression.text}”" + ("" if targets else ", which nothing matches")
    else:
        targets = tuple(range(len(record.targets)))
        words = f"no expression, {len(targets)} targets"
    caption = f"{split}: {record.file_name} (image {record.image_id}): {words}"
    return Sample(caption, _jpeg(fit_regions(image, _masks(image, record, targets), _side(image))))


def examples_of(record: Record, findings: Sequence[Finding]) -> tuple[Example, ...]:
    """The findings of a record as examples; the first one of each check gets a picture.

    There are no pictures if the image is damaged.
    """
    try:
        image = _decoded(record) if findings else None
    except ImageError:
        image = None
    drawn: set[str] = set()
    examples = []
    for finding in findings:
        picture = None
        if image is not None and finding.check not in drawn:
            masks = _masks(image, record, finding.targets)
            side = _side(image)
            picture = _jpeg(fit_regions(image, masks, side) if masks else fit(image, side))
        drawn.add(finding.check)
        examples.append(Example(finding, picture))
    return tuple(examples)


def _decoded(record: Record) -> np.ndarray:
    size = (record.height, record.width)
    return decode_image(record.image, name=record.file_name, annotated=size)


def _masks(image: np.ndarray, record: Record, targets: Sequence[int]) -> list[np.ndarray]:
    """Masks of those targets whose mask can be read and has the size of the image, bool `[H, W]`."""
    masks = []
    for target in targets:
        try:
            mask = record.mask([target]).astype(bool)
        except SegmentationError:
            continue
        if mask.shape == image.shape[:2]:
            masks.append(mask)
    return masks


def _side(image: np.ndarray) -> int:
    """Longer side of the picture of an image, in pixels; small images are not enlarged."""
    return min(_SIDE, max(image.shape[:2]))


def _jpeg(picture: np.ndarray) -> bytes:
    done, jpeg = cv2.imencode(".jpg", np.ascontiguousarray(picture[:, :, ::-1]))
    assert done
    return jpeg.tobytes()


def write_page(
    path: Path,
    title: str,
    counts: Sequence[str],
    found: Mapping[str, int],
    examples: Mapping[str, Sequence[Example]],
    samples: Sequence[Sample],
) -> None:
    """Writes the page, completely or not at all.

    Args:
        path: path of the file.
        title: names the examined dataset.
        counts: lines about the content of the dataset.
        found: check -> number of findings.
        examples: check -> some of its findings.
        samples: sample pictures of the splits.
    """
    rows = "\n".join(
        _row(check, number, examples[check][0].finding) for check, number in found.items()
    )
    sections = "\n".join(_section(check, found[check], shown) for check, shown in examples.items())
    text = (
        f"<!doctype html><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>"
        f"<pre>{html.escape(chr(10).join(counts))}</pre>"
        f"<table><tr><th>found</th><th>how often</th><th></th></tr>{rows}</table>"
        f"{sections or '<p>Nothing was found.</p>'}"
        f"<h2>Samples: what expressions mean</h2>{_samples(samples)}\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        # Texts of a dataset may hold lone surrogates, which UTF-8 cannot encode.
        partial.write_bytes(text.encode("utf-8", "replace"))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _row(check: str, number: int, finding: Finding) -> str:
    kind = "fault" if finding.is_fault else "remark"
    return (
        f"<tr><td class='{kind}'>{html.escape(check)}</td>"
        f"<td class='number'>{number:,}</td><td>{kind}</td></tr>"
    )


def _samples(samples: Sequence[Sample]) -> str:
    return "".join(_figure(sample.picture, sample.caption) for sample in samples)


def _section(check: str, number: int, shown: Sequence[Example]) -> str:
    figures = "".join(
        _figure(example.picture, f"{example.finding.split}: {example.finding.text}")
        for example in shown
    )
    more = f" ({len(shown)} of {number:,})" if len(shown) < number else ""
    return f"<h2>{html.escape(check)}{more}</h2>{figures}"


def _figure(jpeg: bytes | None, caption: str) -> str:
    image = ""
    if jpeg is not None:
        image = f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}'>"
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"
