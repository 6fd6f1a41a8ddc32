"""Lines of JSON in folders, tars and files for `tools.score`: read, or one line that names the place."""

import contextlib
import io
import random
from pathlib import Path
from typing import Any

import pytest

from input_pipeline.building.conversion import BuildError
from input_pipeline.formats.jsonl_files import find_splits, read_images
from input_pipeline.formats.jsonl_records import make_record
from input_pipeline.formats.places import Places
from refseg_jax.cli import score
from tests.fuzz.segmentation_test import BOX, HEIGHT, VALID, WIDTH
from tests.fuzz.values import as_json, flipped, mutated
from tests.input_pipeline.datasets.refcoco_files import jpeg
from tests.refseg_jax.cli.score_files_test import arguments

pytestmark = pytest.mark.slow

ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1")


def _file(lines: list[Any], rng: random.Random) -> bytes:
    data = b"\n".join(as_json(line) for line in lines) + b"\n"
    if rng.random() < 0.1:
        data = data.decode().encode(rng.choice(ENCODINGS))
    return flipped(data, rng) if rng.random() < 0.1 else data


def _line(rng: random.Random) -> dict[str, Any]:
    return {
        "image": rng.choice(["a.jpg", "./a.jpg", ".\\a.jpg", "../a.jpg", "b.jpg"]),
        "expression": "the box",
        "segmentation": rng.choice(VALID),
        **rng.choice([{}, {"box": BOX}, {"present": True}, {"id": "x"}, {"image_id": 7}]),
    }


def test_a_folder_of_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(HEIGHT, WIDTH))
    (tmp_path / "train.jsonl").touch()
    places = Places(tmp_path)
    rng, read = random.Random(3), 0
    for _ in range(20_000):
        lines = [_line(rng) for _ in range(rng.randint(1, 3))]
        changed = [mutated(line, rng, VALID) if rng.random() < 0.6 else line for line in lines]
        (tmp_path / "train.jsonl").write_bytes(_file(changed, rng))
        try:
            for item in read_images(find_splits(tmp_path)["train"], places):
                make_record(item, places=places, source="odd")
                read += 1
        except BuildError as error:
            assert str(error).startswith(str(tmp_path)), error
            assert len(str(error)) < 1000
            assert "\n" not in str(error)
    assert read > 1000


def test_files_for_score(tmp_path: Path) -> None:
    rng, scored = random.Random(4), 0
    command = arguments(tmp_path)
    for _ in range(6000):
        numbers = [str(n) for n in range(rng.randint(1, 3))]
        predictions = [{"id": n, "segmentation": VALID[2], "present": True} for n in numbers]
        # Polygons in shares of the picture are refused, as they should be.
        references = [
            {"id": n, "segmentation": rng.choice([VALID[0], *VALID[2:]])} for n in numbers
        ]
        side = rng.choice([predictions, references])
        place = rng.randrange(len(side))
        if rng.random() < 0.3:
            side[place] = mutated(side[place], rng, VALID)
        elif rng.random() < 0.7:
            side[place]["segmentation"] = mutated(side[place]["segmentation"], rng, VALID)
        (tmp_path / "P.jsonl").write_bytes(_file(predictions, rng))
        (tmp_path / "R.jsonl").write_bytes(_file(references, rng))
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = score.main(command)
        scored += not code
        errors = [line for line in said.getvalue().splitlines() if "error: " in line]
        assert len(errors) == code, said.getvalue()
    assert scored > 1000
