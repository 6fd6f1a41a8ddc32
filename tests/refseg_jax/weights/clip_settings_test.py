"""What a config.json of Hugging Face's may say (OpenCLIP's: clip_test.py)."""

import json
from pathlib import Path
from typing import Any

import pytest

from refseg_jax.errors import UserError
from refseg_jax.weights.clip_files import open_clip
from tests.refseg_jax.weights.clip_sources import hf_folder

#: Beside the sizes, what openai/clip-vit-base-patch32 has, as transformers 4.16 wrote it.
OF_2022: dict[str, Any] = {
    "_name_or_path": "openai/clip-vit-base-patch32",
    "add_cross_attention": False,
    "architectures": None,
    "attention_dropout": 0.1,
    "bos_token_id": 49406,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "diversity_penalty": 0.0,
    "dropout": 0.0,
    "early_stopping": False,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "num_beams": 1,
    "num_return_sequences": 1,
    "pad_token_id": 1,
    "pruned_heads": {},
    "repetition_penalty": 1.0,
    "return_dict": True,
    "temperature": 1.0,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "top_k": 50,
    "top_p": 1.0,
    "torch_dtype": "float32",
    "transformers_version": "4.16.0.dev0",
    "typical_p": 1.0,
}


def folder_with(folder: Path, section: str, fields: dict[str, Any]) -> str:
    hf_folder(folder)
    file = folder / "config.json"
    stored = json.loads(file.read_text())
    (stored[section] if section else stored).update(fields)
    file.write_text(json.dumps(stored))
    return str(folder)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("text_config", "is_decoder", True),
        ("text_config", "add_cross_attention", True),
        ("text_config", "model_type", "bert"),
        ("vision_config", "pruned_heads", {"0": [1]}),
        ("vision_config", "model_type", "siglip_vision_model"),
        ("vision_config", "of_next_year", 1),
        ("", "model_type", "chinese_clip"),
        ("", "quantization_config", {"load_in_8bit": True}),
    ],
)
def test_a_setting_that_the_towers_do_not_have_is_refused_by_name(
    tmp_path: Path, section: str, field: str, value: object
) -> None:
    with pytest.raises(UserError) as caught:
        open_clip(folder_with(tmp_path / "source", section, {field: value}))
    where = f"{section}.{field}" if section else field
    assert f"config.json: {where}=" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "kind"),
    [("", "clip"), ("vision_config", "clip_vision_model"), ("text_config", "clip_text_model")],
)
def test_what_transformers_writes_for_every_model_is_no_reason_to_refuse(
    tmp_path: Path, section: str, kind: str
) -> None:
    fields = {**OF_2022, "model_type": kind}
    assert open_clip(folder_with(tmp_path / "source", section, fields)).format == "hf_clip"


def test_the_older_spelling_of_a_section_is_looked_through_too(tmp_path: Path) -> None:
    source = hf_folder(tmp_path / "source")
    stored = json.loads((source / "config.json").read_text())
    stored["text_config_dict"] = {**stored["text_config"], "is_decoder": True}
    (source / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"text_config\.is_decoder='True'"):
        open_clip(str(source))
