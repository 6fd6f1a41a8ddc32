"""Names and shapes of the entries of published Swins and BERTs."""

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def ms_swin(
    width: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int, *, backbone: bool
) -> Shapes:
    """Microsoft's Swin: a classifier, or a backbone with a norm for each stage."""
    shapes: Shapes = {
        "patch_embed.proj.weight": (width, 3, 4, 4),
        "patch_embed.proj.bias": (width,),
    }
    shapes |= norm("patch_embed.norm", width)
    for stage, depth in enumerate(depths):
        c = width << stage
        for number in range(depth):
            block = f"layers.{stage}.blocks.{number}"
            table, tokens = (2 * window - 1) ** 2, window * window
            shapes |= norm(f"{block}.norm1", c) | norm(f"{block}.norm2", c)
            shapes[f"{block}.attn.relative_position_bias_table"] = (table, heads[stage])
            shapes[f"{block}.attn.relative_position_index"] = (tokens, tokens)
            shapes |= linear(f"{block}.attn.qkv", 3 * c, c) | linear(f"{block}.attn.proj", c, c)
            shapes |= linear(f"{block}.mlp.fc1", 4 * c, c) | linear(f"{block}.mlp.fc2", c, 4 * c)
            if number % 2 and not backbone:
                shapes[f"{block}.attn_mask"] = (4, tokens, tokens)
        if stage + 1 < len(depths):
            shapes |= norm(f"layers.{stage}.downsample.norm", 4 * c)
            shapes[f"layers.{stage}.downsample.reduction.weight"] = (2 * c, 4 * c)
        if backbone:
            shapes |= norm(f"norm{stage}", c)
    last = width << (len(depths) - 1)
    return shapes if backbone else shapes | norm("norm", last) | linear("head", 10, last)


def hf_swin(
    width: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int, *, backbone: bool
) -> Shapes:
    """`SwinForImageClassification`, or `SwinBackbone` (whose prefix is only at its unused norm)."""
    tower = "" if backbone else "swin."
    embeddings = f"{tower}embeddings"
    shapes: Shapes = {
        f"{embeddings}.patch_embeddings.projection.weight": (width, 3, 4, 4),
        f"{embeddings}.patch_embeddings.projection.bias": (width,),
    }
    shapes |= norm(f"{embeddings}.norm", width)
    for stage, depth in enumerate(depths):
        c = width << stage
        layer = f"{tower}encoder.layers.{stage}"
        for number in range(depth):
            block = f"{layer}.blocks.{number}"
            attention = f"{block}.attention"
            shapes |= norm(f"{block}.layernorm_before", c) | norm(f"{block}.layernorm_after", c)
            for part in ("query", "key", "value"):
                shapes |= linear(f"{attention}.self.{part}", c, c)
            table = f"{attention}.self.relative_position_bias_table"
            shapes[table] = ((2 * window - 1) ** 2, heads[stage])
            shapes[f"{attention}.self.relative_position_index"] = (window**2, window**2)
            shapes |= linear(f"{attention}.output.dense", c, c)
            shapes |= linear(f"{block}.intermediate.dense", 4 * c, c)
            shapes |= linear(f"{block}.output.dense", c, 4 * c)
        if stage + 1 < len(depths):
            shapes |= norm(f"{layer}.downsample.norm", 4 * c)
            shapes[f"{layer}.downsample.reduction.weight"] = (2 * c, 4 * c)
        if backbone:
            shapes |= norm(f"hidden_states_norms.stage{stage + 1}", c)
    last = width << (len(depths) - 1)
    shapes |= norm("swin.layernorm", last)
    return shapes if backbone else shapes | linear("classifier", 10, last)


def hf_bert(width: int, layers: int, hidden: int, vocab: int, positions: int) -> Shapes:
    """`bert-base-uncased` as on the hub: names begin with `bert.`, and norms have their old names."""
    shapes: Shapes = {
        "bert.embeddings.word_embeddings.weight": (vocab, width),
        "bert.embeddings.position_embeddings.weight": (positions, width),
        "bert.embeddings.token_type_embeddings.weight": (2, width),
        "cls.predictions.bias": (vocab,),
    }
    norms = ["bert.embeddings.LayerNorm", "cls.predictions.transform.LayerNorm"]
    for number in range(layers):
        layer = f"bert.encoder.layer.{number}"
        for part in ("query", "key", "value"):
            shapes |= linear(f"{layer}.attention.self.{part}", width, width)
        shapes |= linear(f"{layer}.attention.output.dense", width, width)
        shapes |= linear(f"{layer}.intermediate.dense", hidden, width)
        shapes |= linear(f"{layer}.output.dense", width, hidden)
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name in norms:
        shapes |= {f"{name}.gamma": (width,), f"{name}.beta": (width,)}
    shapes |= linear("bert.pooler.dense", width, width)
    shapes |= linear("cls.predictions.transform.dense", width, width)
    return shapes | linear("cls.seq_relationship", 2, width)
