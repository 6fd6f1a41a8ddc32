"""The table of published weights against the code that reads them."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from refseg_jax.cli import import_weights
from refseg_jax.images import colours
from refseg_jax.models import model_config
from refseg_jax.models.rela_config import ReLAConfig
from refseg_jax.models.unilseg_config import UniLSegConfig, unilseg_config
from refseg_jax.models.unires_config import unires_config
from refseg_jax.naming import read_table
from refseg_jax.weights import published
from refseg_jax.weights.published import COLOURS, PublishedWeights, all_weights
from tests.refseg_jax.weights.clip_sources import PUBLISHED

ROOT = Path(published.__file__).resolve().parents[2]

ENTRY = """
["a.pt"]
what = "A"
kind = "clip"
format = "hf_clip"
hub = ""
file = "a.pt"
address = "https://a.org/a.pt"
sha256 = ""
input_size = 224
colours = "clip"
licence = "MIT"
licence_source = "not stated"
fits = []
"""


def test_formats_are_those_of_the_command():
    assert {w.format for w in all_weights().values()} <= import_weights.FORMATS.keys()


def test_presets_are_there_and_have_the_sizes():
    for weights in all_weights().values():
        assert weights.fits
        for name in weights.fits:
            model, _, preset = name.partition(":")
            assert model_config({"name": model, "preset": preset})
    clips = [w for w in all_weights().values() if w.kind == "clip"]
    names = {w.what.removeprefix("CLIP ViT-").replace(" at ", "@") for w in clips}
    assert names == PUBLISHED.keys()
    for weights in clips:
        sizes = PUBLISHED[weights.what.removeprefix("CLIP ViT-").replace(" at ", "@")]
        assert weights.input_size == sizes.image
        presets = dict(name.split(":") for name in weights.fits)
        config = unires_config({"preset": presets["unires"]})
        ours = (config.patch_size, config.vision_width, config.vision_layers, config.text_width)
        assert ours == (sizes.patch, sizes.vision, sizes.vision_layers, sizes.text)
        if "unilseg" in presets:
            reader = unilseg_config({"preset": presets["unilseg"]})
            told = (reader.text_width, reader.text_layers, reader.embedding_width)
            assert told == (sizes.text, sizes.text_layers, sizes.output)
    for kind, config in (("rela", ReLAConfig()), ("unilseg", UniLSegConfig())):
        (whole,) = (w for w in all_weights().values() if w.kind == kind)
        assert whole.input_size == config.image_size
        assert whole.colours == config.pixels


def test_the_windows_and_the_vocabulary_are_those_of_the_preset():
    for weights in all_weights().values():
        if weights.kind == "swin":
            (model, preset), *_ = (name.split(":") for name in weights.fits)
            config = model_config({"name": model, "preset": preset})
            assert f"window {config.window}," in weights.what
            assert f"window{config.window}_{weights.input_size}" in weights.name.replace("-", "_")
            # Trained with ImageNet's colours; the public UniLSeg gives it CLIP's.
            assert weights.colours == "imagenet"
            width = {"Swin-B": 128, "Swin-L": 192}[weights.what.split(",")[0]]
            assert width == config.swin_width
        assert weights.kind != "bert" or (weights.input_size, weights.colours) == (0, "")


def test_colours_have_a_mean_and_a_deviation():
    for name in filter(None, COLOURS):
        assert len(getattr(colours, f"{name.upper()}_MEAN")) == 3
        assert len(getattr(colours, f"{name.upper()}_STD")) == 3


def test_addresses_lead_to_the_hub_or_name_file_and_digest():
    for name, weights in all_weights().items():
        if weights.hub:
            assert (name, weights.address) == (weights.hub, f"https://huggingface.co/{weights.hub}")
        elif weights.file:
            assert name == weights.file == weights.address.rpartition("/")[2]
        if weights.format == "openai_clip":
            assert weights.address.split("/")[-2] == weights.sha256


def test_weights_that_configs_name_are_in_the_table():
    texts = [path.read_text() for path in sorted((ROOT / "configs").glob("*.py"))]
    named = re.findall(r"config\.init\.(?:clip|swin|bert)=([\w-]+/[\w-]+)", "".join(texts))
    assert len(set(named)) >= 3
    assert set(named) <= all_weights().keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace('"MIT"', '""'), "field 'licence' is empty"),
        (lambda t: t.replace('kind = "clip"', 'kind = "clap"'), "field 'kind': .*'clip'"),
        (lambda t: t.replace('colours = "clip"', 'colours = "coco"'), "field 'colours': unknown"),
        (lambda t: t.replace('sha256 = ""', 'sha256 = "ABC"'), "field 'sha256' is 'ABC'"),
        (lambda t: t.replace("224", "-1"), "field 'input_size' is -1"),
        (lambda t: t.replace('"https://a', '"a'), "field 'address' is 'a.org/a.pt': no address"),
        (lambda t: t.replace('"not stated"', '"there"'), "field 'licence_source' is 'there'"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, change: Callable[[str], str], message: str):
    path = tmp_path / "weights.toml"
    path.write_text(ENTRY)
    assert read_table(path, PublishedWeights)["a.pt"].input_size == 224
    path.write_text(change(ENTRY))
    with pytest.raises(ValueError, match=rf"weights\.toml: a\.pt: {message}"):
        read_table(path, PublishedWeights)
