"""What is exported is what transformers takes it for: CLIP's towers and the tokenizer."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPModel, CLIPProcessor

from refseg_jax.exports.exporter import export
from refseg_jax.images.colours import CLIP_MEAN, CLIP_STD
from refseg_jax.models.graphs import forward_of
from refseg_jax.text.tokenizers import build_tokenizer
from tests.parity.pairs import Params, random_parameters
from tests.refseg_jax.exports.folders import TEXTS
from tests.refseg_jax.training.tiny_run import UNIRES, save_unires, unires_run_config

pytestmark = pytest.mark.parity

#: Both have group tokens, which CLIP has not; every width is another.
MODELS: dict[str, dict[str, Any]] = {
    "quick_gelu": {**UNIRES, "vision_layers": 4, "text_layers": 3},
    "gelu": {**UNIRES, "activation": "gelu", "image_size": 56},
}
LENGTH = 12


class Exported:
    """A model with random parameters, and the folder it was exported to."""

    def __init__(self, folder: Path, model: dict[str, Any]) -> None:
        self.model = model
        self.params = random_parameters(forward_of(model).shapes)
        config = {**unires_run_config(), "model": model}
        save_unires(folder / "run", self.params, config=config)
        self.path = folder / "out"
        export(folder / "run", "safetensors", self.path, command=["x"])

    def towers(self, image: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
        """What our towers give where no group tokens stand beside the patches."""
        plain = forward_of({**self.model, "low_tokens": 0, "high_tokens": 0})
        params = {path: self.params[path] for path in plain.shapes if path in self.params}
        # The rest of a model without tokens is not looked at.
        rest = {path: np.zeros(leaf.shape) for path, leaf in plain.shapes.items()}

        def run(params: Params, image: np.ndarray, ids: np.ndarray) -> dict[str, Any]:
            model = plain.bind(params)
            seen = model.vision(image)
            words, sentence = model.text(ids)
            return {
                "hidden": seen.high_patches,
                "patches": seen.patches,
                "words": words,
                "sentence": sentence,
            }

        return jax.tree.map(np.asarray, jax.jit(run)({**rest, **params}, image, ids))


@pytest.fixture(scope="module", params=list(MODELS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("exported"), MODELS[request.param])


def test_the_towers_load_as_a_clip_model_and_give_the_same_features(exported: Exported) -> None:
    clip, info = CLIPModel.from_pretrained(exported.path / "clip", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    clip = clip.eval()
    size, eos = exported.model["image_size"], exported.model["eos_id"]
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, size, size, 3), np.uint8)
    place, end = np.arange(LENGTH), np.array([[3], [7], [11]])
    ids = rng.integers(1, eos, (3, LENGTH))
    ids = np.where(place < end, ids, np.where(place == end, eos, 0)).astype(np.int32)
    pixels = ((image / 255.0 - CLIP_MEAN) / CLIP_STD).astype(np.float32)
    with torch.inference_mode():
        seen = clip.vision_model(torch.from_numpy(pixels).permute(0, 3, 1, 2)).last_hidden_state
        read = clip.text_model(torch.from_numpy(ids).long())
        expected = {
            "hidden": seen[:, 1:],
            "patches": clip.visual_projection(clip.vision_model.post_layernorm(seen[:, 1:])),
            "words": read.last_hidden_state,
            "sentence": clip.text_projection(read.pooler_output),
        }
    for name, ours in exported.towers(image, ids).items():
        theirs = expected[name].numpy()
        assert theirs.std() > 0.01
        error = np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)
        assert error.max() <= 1e-5, name


#: "!" is CLIP's id 0, which our batches are padded with.
SAID = [*TEXTS, "Don't & the 3rd naïve café", "a car! wow!?!!!"]


@pytest.mark.parametrize("place", ["", "clip"])
def test_transformers_reads_the_tokenizer(exported: Exported, place: str) -> None:
    theirs = AutoTokenizer.from_pretrained(exported.path / place)
    ids, valid = build_tokenizer()(SAID, 22)
    for text, row, mask in zip(SAID, ids, valid, strict=True):
        assert theirs(text)["input_ids"] == row[mask].tolist()
    assert theirs.model_max_length == 10
    cut = theirs("word " * 50, truncation=True)["input_ids"]
    assert len(cut) == 10
    assert cut[-1] == exported.model["eos_id"]


def test_clips_processor_prepares_images_and_texts(exported: Exported) -> None:
    processor: Any = CLIPProcessor.from_pretrained(exported.path / "clip")
    size = exported.model["image_size"]
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    found = processor(text=SAID, images=[image], return_tensors="np", padding=True)
    ids, valid = build_tokenizer()(SAID, found["input_ids"].shape[1])
    np.testing.assert_array_equal(found["attention_mask"], valid)
    np.testing.assert_array_equal(np.where(valid, found["input_ids"], 0), ids)
    pixels = ((image / 255.0 - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1)
    np.testing.assert_allclose(found["pixel_values"][0], pixels, rtol=0, atol=1e-5)
