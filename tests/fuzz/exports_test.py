"""Exports of other tools with changes: what cannot be read is one line, and nothing else is raised."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from input_pipeline.datasets.masks import FORMATS
from input_pipeline.formats.exchange.lines import Collected
from input_pipeline.formats.places import Places
from refseg_jax.errors import UserError
from tests.fuzz.values import as_json, flipped, mutated
from tests.input_pipeline.formats.exchange import exports
from tests.input_pipeline.formats.exchange.exports import RIGHT, picture

pytestmark = pytest.mark.slow


def _sa_co() -> Any:
    content = exports.coco()
    content["images"][0] |= {"text_input": "two cats", "is_instance_exhaustive": 1}
    return content


CONTENTS: dict[str, tuple[str, list[Any]]] = {
    "coco": ("train.json", [exports.coco(), _sa_co()]),
    "fiftyone": (
        "samples.json",
        [
            {
                "samples": [
                    exports.sample(
                        exports.detection(2, 3, 4, "cat", confidence=0.9, caption="the cat"),
                        metadata={"width": 20, "height": 12},
                    )
                ]
            }
        ],
    ),
    "label_studio": (
        "project.json",
        [
            [
                exports.task(
                    exports.result("1", "polygonlabels", points=exports.left_polygon()),
                    exports.result("1", "textarea", text=["the cat"]),
                    exports.result("2", "brushlabels", rle=exports.brush(RIGHT), brushlabels=["a"]),
                    exports.result("3", "choices", choices=["b"]),
                )
            ],
        ],
    ),
}


@pytest.mark.parametrize("form", CONTENTS)
def test_exports_with_changes(tmp_path: Path, form: str) -> None:
    assert set(CONTENTS) == set(FORMATS)
    reader: Callable[[Places], dict[str, Collected]] = FORMATS[form]
    name, contents = CONTENTS[form]
    picture(tmp_path / "a.png")
    picture(tmp_path / "data" / "a.png")
    rng, read = random.Random(5), 0
    for _ in range(1000):
        data = as_json(mutated(rng.choice(contents), rng))
        (tmp_path / name).write_bytes(flipped(data, rng) if rng.random() < 0.2 else data)
        try:
            for split, collected in reader(Places(tmp_path)).items():
                for image in collected.images(split):
                    assert all(line.text for line in image.lines())
            read += 1
        except UserError as error:
            assert str(error).startswith(str(tmp_path)), error
            assert len(str(error)) < 1000
            assert "\n" not in str(error)
    assert read > 50
