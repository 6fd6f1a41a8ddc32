"""`tools.predict --region_maps`: one picture a pair, of models that have regions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refseg_jax.cli import predict
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.prediction.predictor import Predictor
from refseg_jax.reporting.pictures import region_panel
from refseg_jax.text.tokenizers import ExpressionError
from tests.refseg_jax.exports.folders import compiling_in_a_hurry
from tests.refseg_jax.models.rela_test import SMALL
from tests.refseg_jax.training.tiny_run import UNIRES, random_params, save_unires, unires_run_config

MODEL: dict[str, Any] = {**SMALL, "vocab_size": 49408, "eos_id": 49407, "relationship": "paper"}
#: Two chunks.
TEXTS = ("the red box", "both boxes", "nothing at all", "a box")


def _save(folder: Path, model: dict[str, Any]) -> Path:
    forward = Forward(lambda rngs: build_model(model, rngs=rngs))
    save_unires(folder, random_params(forward), config=unires_run_config(0.5, model))
    return folder


@pytest.fixture(scope="module", autouse=True)
def in_a_hurry() -> Iterator[None]:
    with compiling_in_a_hurry():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save(tmp_path_factory.mktemp("run"), MODEL)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "a.png"
    coarse = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(coarse).resize((90, 40)).save(path)
    return path


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return Predictor.from_checkpoint(run, expressions_at_once=2)


def test_every_pair_has_a_picture_of_its_regions(
    run: Path, image: Path, tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "from_checkpoint", lambda *_, **__: predictor)
    flags = [f"--checkpoint={run}", f"--image={image}", f"--output_dir={tmp_path}"]
    assert predict.main([*flags, *(f"--text={text}" for text in TEXTS), "--region_maps"]) == 0
    found = predictor.region_maps(image, TEXTS)
    masks = predictor.predict(image, TEXTS)
    for k, (text, one, prediction) in enumerate(zip(TEXTS, found, masks, strict=True)):
        with Image.open(image) as rgb, Image.open(tmp_path / f"a.png-{k}-regions.png") as drawn:
            expected = region_panel(np.asarray(rgb), prediction.mask, one, text)
            np.testing.assert_array_equal(np.asarray(drawn), expected)
    assert len(list(tmp_path.glob("*-regions.png"))) == len(TEXTS)


def test_maps_and_presence_are_those_of_the_prediction(predictor: Predictor, image: Path) -> None:
    """Whatever shares a chunk with an expression, and in the order of the expressions."""
    found = predictor.region_maps(image, TEXTS, regions=5)
    others = predictor.region_maps(image, (TEXTS[-1], *TEXTS[:-1]), regions=5)
    predictions = predictor.predict(image, TEXTS)
    for one, other, prediction in zip(found, (*others[1:], others[0]), predictions, strict=True):
        np.testing.assert_allclose(one.minimap, other.minimap, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(one.regions, other.regions)
        assert (one.present > 0.5) == prediction.present
        assert one.size == prediction.mask.shape
        assert one.minimap.shape == (MODEL["side"], MODEL["side"])
        assert one.masks.shape == (5, 16, 16)
        assert (np.diff(one.minimap.ravel()[one.regions]) <= 0).all()
    assert len({one.present for one in found}) == len(TEXTS)


def test_a_model_without_regions_is_one_line_before_anything_is_written(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = _save(tmp_path / "run", UNIRES), tmp_path / "out"
    flags = [f"--checkpoint={run}", f"--image={image}", "--text=x", f"--output_dir={out}"]
    assert predict.main([*flags, "--region_maps"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: the model has no regions, so that there are no maps of them; ")
    assert "leave out --region_maps" in line
    assert not list(out.iterdir())


@pytest.mark.parametrize("texts", [[], "box"])
def test_expressions_are_checked_as_for_masks(predictor: Predictor, image: Path, texts: Any):
    with pytest.raises(ExpressionError):
        predictor.region_maps(image, texts)
