"""The tables for CLIP in OpenAI's, Hugging Face's and OpenCLIP's files, and checks of its settings.

Names and layouts are those of `clip/model.py` (OpenAI), `modeling_clip.py` (transformers) and
`model.py` (OpenCLIP, whose ViTs have OpenAI's names). Some settings do not follow from the arrays: the
activation, the number of heads, the epsilon, the EOS id and the normalisation of images. They are read
from a JSON file beside the weights, or are known for OpenAI's own files. A model with other settings is
refused, because it would run without an error and give wrong results.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax

from refseg_jax.errors import UserError
from refseg_jax.images.colours import CLIP_MEAN, CLIP_STD
from refseg_jax.layers.norm import EPSILON
from refseg_jax.weights.loader import Plan, first_match, plan
from refseg_jax.weights.table import (
    Table,
    convolution,
    linear,
    norm,
    packed,
    positions,
    rename,
    row,
    transposed,
)

_VISION, _TEXT = r"vision.blocks.\1", r"text.blocks.\1"

#: Parameters that no CLIP file fills -> the reason; they keep their random initial values.
NEW = {
    r"vision\.(low|high)_tokens": "group tokens: new in UniRES",
    r"(low|high)_filter\..*": "region filter: new in UniRES",
    r"(group_)?decoder\..*": "decoder: new in UniRES",
    r"head\..*": "head: new in UniRES",
    r"(presence|evidence)\..*": "presence head: new in UniRES",
    r"(patch|word)_adapter\..*": "adapter between CLIP's width and the decoder's: new in UniRES",
}

_SCALE = {"logit_scale": "the temperature of CLIP's contrastive loss, which no model here has"}

#: Prefix of the parameters of the text tower, for models that have only that of CLIP's towers.
TEXT = "text."

#: Why such a model reads no image tower.
_BLIND = "CLIP's image tower: the model sees images with another"


def _openai_block(source: str, target: str) -> tuple[Any, ...]:
    attention = f"{target}.attention"
    three = (f"{attention}.query", f"{attention}.key", f"{attention}.value")
    return (
        *packed(rf"{source}\.attn", three, "in_proj_weight", "in_proj_bias"),
        *linear(rf"{source}\.attn\.out_proj", f"{attention}.out"),
        *norm(rf"{source}\.ln_1", f"{target}.attention_norm"),
        *norm(rf"{source}\.ln_2", f"{target}.mlp_norm"),
        *linear(rf"{source}\.mlp\.c_fc", f"{target}.mlp.up"),
        *linear(rf"{source}\.mlp\.c_proj", f"{target}.mlp.down"),
    )


def _hf_block(source: str, target: str) -> tuple[Any, ...]:
    return (
        *linear(rf"{source}\.self_attn\.q_proj", f"{target}.attention.query"),
        *linear(rf"{source}\.self_attn\.k_proj", f"{target}.attention.key"),
        *linear(rf"{source}\.self_attn\.v_proj", f"{target}.attention.value"),
        *linear(rf"{source}\.self_attn\.out_proj", f"{target}.attention.out"),
        *norm(rf"{source}\.layer_norm1", f"{target}.attention_norm"),
        *norm(rf"{source}\.layer_norm2", f"{target}.mlp_norm"),
        *linear(rf"{source}\.mlp\.fc1", f"{target}.mlp.up"),
        *linear(rf"{source}\.mlp\.fc2", f"{target}.mlp.down"),
    )


#: OpenAI's names, which OpenCLIP's ViTs have too.
OPENAI = Table(
    rules=(
        rename(r"visual\.conv1\.weight", "vision.patch_embedding.kernel", convolution),
        rename(r"visual\.class_embedding", "vision.class_token", row),
        rename(r"visual\.positional_embedding", "vision.position_embedding", positions),
        *norm(r"visual\.ln_pre", "vision.input_norm"),
        *_openai_block(r"visual\.transformer\.resblocks\.(\d+)", _VISION),
        *norm(r"visual\.ln_post", "vision.final_norm"),
        # A bare matrix [inputs, outputs] in both towers, unlike torch's Linear.
        rename(r"visual\.proj", "vision.projection.kernel"),
        rename(r"token_embedding\.weight", "text.token_embedding.embedding"),
        rename(r"positional_embedding", "text.position_embedding"),
        *_openai_block(r"transformer\.resblocks\.(\d+)", _TEXT),
        *norm(r"ln_final", "text.final_norm"),
        rename(r"text_projection", "text.projection.kernel"),
    ),
    unread={
        **_SCALE,
        r"(visual\.)?(input_resolution|context_length|vocab_size)": "a size, which the arrays tell",
        r"(.*\.)?attn_mask": "the causal mask, which the tower makes itself",
    },
    unwritten=NEW,
)

HF = Table(
    rules=(
        rename(
            r"vision_model\.embeddings\.patch_embedding\.weight",
            "vision.patch_embedding.kernel",
            convolution,
        ),
        rename(r"vision_model\.embeddings\.class_embedding", "vision.class_token", row),
        rename(
            r"vision_model\.embeddings\.position_embedding\.weight",
            "vision.position_embedding",
            positions,
        ),
        *norm(r"vision_model\.pre_layrnorm", "vision.input_norm"),  # Their spelling.
        *_hf_block(r"vision_model\.encoder\.layers\.(\d+)", _VISION),
        *norm(r"vision_model\.post_layernorm", "vision.final_norm"),
        rename(r"visual_projection\.weight", "vision.projection.kernel", transposed),
        rename(
            r"text_model\.embeddings\.token_embedding\.weight", "text.token_embedding.embedding"
        ),
        rename(r"text_model\.embeddings\.position_embedding\.weight", "text.position_embedding"),
        *_hf_block(r"text_model\.encoder\.layers\.(\d+)", _TEXT),
        *norm(r"text_model\.final_layer_norm", "text.final_norm"),
        rename(r"text_projection\.weight", "text.projection.kernel", transposed),
    ),
    unread={
        **_SCALE,
        r".*\.embeddings\.position_ids": "0, 1, 2, ..., which older versions stored",
    },
    unwritten=NEW,
)

FORMATS: Mapping[str, Table] = {"openai_clip": OPENAI, "hf_clip": HF, "openclip": OPENAI}


@dataclasses.dataclass(frozen=True)
class Facts:
    """Settings of a CLIP that do not follow from its arrays.

    Attributes:
        activation: of the MLPs, by its name in the config of the model.
        vision_heads, text_heads: attention heads of the two towers.
        eos_id: id of the token whose feature is the sentence.
        epsilon: of the norms in both towers.
        mean, std: of RGB in 0..1, for the normalisation of images.
    """

    activation: str
    vision_heads: int
    text_heads: int
    eos_id: int
    epsilon: float = EPSILON
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD


def sizes(table: Table, source: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, int]:
    """The fields of a model's config that follow from the shapes of a CLIP.

    Args:
        table: the table of the file's format.
        source: entry -> shape and dtype.

    Returns:
        `image_size`, `patch_size`, `vision_width`, `vision_layers`, `embedding_width`, `text_width`,
        `text_layers`, `vocab_size`, `text_positions`.

    Raises:
        KeyError, ValueError: an entry that determines a size is missing, or has another rank.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for entry, leaf in source.items():
        for path, change in first_match(table.rules, entry) or ():
            if re.search(
                r"\.(\d+\.attention_norm\.bias|kernel|embedding|position_embedding)$", path
            ):
                # With the file's own shape as target, so that positions are not resized.
                shapes[path] = jax.eval_shape(lambda x, c=change: c(x, x.shape), leaf).shape
    patch, _, _, vision_width = shapes["vision.patch_embedding.kernel"]
    cells, _ = shapes["vision.position_embedding"]
    vocab_size, text_width = shapes["text.token_embedding.embedding"]
    layers = lambda tower: sum(  # noqa: E731
        bool(re.fullmatch(rf"{tower}\.blocks\.\d+\.attention_norm\.bias", path)) for path in shapes
    )
    return {
        "image_size": round((cells - 1) ** 0.5) * patch,
        "patch_size": patch,
        "vision_width": vision_width,
        "vision_layers": layers("vision"),
        "embedding_width": shapes["vision.projection.kernel"][1],
        "text_width": text_width,
        "text_layers": layers("text"),
        "vocab_size": vocab_size,
        "text_positions": shapes["text.position_embedding"][0],
    }


def text_alone(table: Table) -> Table:
    """The table for a model that has only the text tower of CLIP, below `TEXT`."""
    texts = [rule for rule in table.rules if rule.writes[0][0].startswith(TEXT)]
    images = {rule.pattern: _BLIND for rule in table.rules if rule not in texts}
    return Table(tuple(texts), {**table.unread, **images}, {})


#: Fields of `sizes` that are about the image tower.
_IMAGE_SIZES = ("image_size", "patch_size", "vision_width", "vision_layers")


def check(facts: Facts, config: Any, *, name: str, prefix: str = "") -> None:
    """Checks that the settings of a CLIP equal the config of the model that loads it.

    Args:
        facts: settings of the weights.
        config: config of the model, with the fields of `UniRESConfig` that are about its towers.
        name: the weights, for the message.
        prefix: as in `plan_towers`.

    Raises:
        UserError: they differ; one line with every field to set.
    """
    sees = not prefix
    cures = [
        f"config.model.{field}={getattr(facts, field)} (now {getattr(config, field)})"
        for field in ("activation", *(("vision_heads",) if sees else ()), "text_heads", "eos_id")
        if getattr(facts, field) != getattr(config, field)
    ]
    if sees and config.stem_width:
        cures.append(f"config.model.stem_width=0 (now {config.stem_width})")
    if cures:
        raise UserError(f"{name}: the model differs from these weights: set {', '.join(cures)}")
    if facts.epsilon != EPSILON:
        raise UserError(
            f"{name}: its norms have epsilon {facts.epsilon}, the model's {EPSILON}; use weights "
            "that were trained with that"
        )
    ours = (*CLIP_MEAN, *CLIP_STD)
    theirs = (*facts.mean, *facts.std)
    # Written so that NaN fails the comparison, too.
    near = len(theirs) == 6 and all(abs(a - b) <= 1e-4 for a, b in zip(ours, theirs, strict=True))
    if sees and not near:
        raise UserError(
            f"{name}: trained on images of mean {list(facts.mean)} and deviation "
            f"{list(facts.std)}, but images are normalised as OpenAI's CLIP has them; use weights "
            "that were trained so"
        )


def plan_towers(
    table: Table,
    source: Mapping[str, jax.ShapeDtypeStruct],
    target: Mapping[str, jax.ShapeDtypeStruct],
    config: Any,
    *,
    name: str,
    prefix: str = "",
) -> Plan:
    """`loader.plan` for CLIP, with an error message that also lists the sizes that differ.

    Args:
        table, source, target, name: as in `loader.plan`.
        config: config of the model, with the fields of `UniRESConfig` that are about its towers.
        prefix: `""` for a model with both towers, `TEXT` for one with the text tower alone.

    Raises:
        UserError: the weights do not fit the model.
    """
    target = {path: leaf for path, leaf in target.items() if path.startswith(prefix)}
    try:
        return plan(text_alone(table) if prefix else table, source, target, name=name)
    except UserError as error:
        try:
            found = sizes(table, source)
        except (KeyError, ValueError):
            raise error from None
        found.pop("image_size")  # Positions are resized.
        other = [
            f"config.model.{field}={value} (now {getattr(config, field)})"
            for field, value in found.items()
            if not (prefix and field in _IMAGE_SIZES) and value != getattr(config, field)
        ]
        if not other:
            raise
        raise UserError(f"{error}; the sizes of these weights: {', '.join(other)}") from None
