"""Checks the JSON settings of published CLIPs, and refuses those that the towers do not support.

An unknown setting may change what a tower computes without changing any array. So every field must be
known: it is read, it follows from the arrays, or it matters only to training, text generation or
bookkeeping. Any other field must be switched off (none, false, 0 or empty).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refseg_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Section:
    """The accepted fields of one section of a JSON file.

    Attributes:
        known: fields that may have any value.
        values: field -> the values that change nothing, besides none, false, 0 and empty.
    """

    known: frozenset[str]
    values: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)


def check(
    file: Path, sections: Mapping[str, Section], stored: Mapping[str, Mapping[str, Any]]
) -> None:
    """Checks all fields of a JSON file.

    Args:
        file: the file, for the message.
        sections: section -> accepted fields, `OPENCLIP` or `HF`.
        stored: section -> the fields in the file; `""` is the top level of the file.

    Raises:
        UserError: the towers do not support a field.
    """
    for name, fields in stored.items():
        section = sections[name]
        for field, value in fields.items():
            if value and field not in section.known and value not in section.values.get(field, ()):
                where = f"{name}.{field}" if name else field
                raise UserError(
                    f"{file}: {where}={str(value)[:80]!r}, which the towers do not have; take other "
                    "weights"
                )


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Sections of OpenCLIP's config. `pad_id` and `eos_id` matter only with `embed_cls` or another
#: `pool_type`, which are refused.
OPENCLIP: Mapping[str, Section] = {
    "model_cfg": Section(
        _words(
            """embed_dim vision_cfg text_cfg quick_gelu custom_text cast_dtype init_logit_scale
            nonscalar_logit_scale output_dict"""
        )
    ),
    "vision_cfg": Section(
        _words(
            """layers width head_width mlp_ratio patch_size image_size patch_dropout output_tokens
            attn_pooler_queries attn_pooler_heads"""
        ),
        {"pool_type": ("tok",), "pos_embed_type": ("learnable",), "block_type": ("default",)},
    ),
    "text_cfg": Section(
        _words(
            "context_length vocab_size width heads layers mlp_ratio output_tokens pad_id eos_id"
        ),
        {"pool_type": ("argmax",), "proj_type": ("linear",), "block_type": ("default",)},
    ),
}

#: Fields that transformers writes for models of every kind.
_HF_ANY = _words(
    """_name_or_path _commit_hash _attn_implementation_autoset transformers_version architectures
    dtype torch_dtype use_bfloat16 torchscript return_dict output_attentions output_hidden_states
    chunk_size_feed_forward gradient_checkpointing attn_implementation tie_word_embeddings
    dropout attention_dropout initializer_range initializer_factor
    id2label label2id problem_type finetuning_task task_specific_params
    tokenizer_class prefix bos_token_id eos_token_id pad_token_id sep_token_id
    decoder_start_token_id forced_bos_token_id forced_eos_token_id suppress_tokens
    begin_suppress_tokens bad_words_ids
    use_cache max_length min_length do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size exponential_decay_length_penalty
    num_return_sequences output_scores return_dict_in_generate remove_invalid_values"""
)
_HF_TOWER = _HF_ANY | _words(
    """hidden_size intermediate_size projection_dim num_hidden_layers num_attention_heads hidden_act
    layer_norm_eps"""
)

#: Sections of the config in Hugging Face's format.
HF: Mapping[str, Section] = {
    "": Section(
        _HF_ANY
        | _words(
            """projection_dim logit_scale_init_value text_config vision_config text_config_dict
            vision_config_dict"""
        ),
        {"model_type": ("clip",)},
    ),
    "vision_config": Section(
        _HF_TOWER | _words("num_channels image_size patch_size"),
        {"model_type": ("clip", "clip_vision_model")},
    ),
    "text_config": Section(
        _HF_TOWER | _words("vocab_size max_position_embeddings"),
        {"model_type": ("clip", "clip_text_model")},
    ),
}
