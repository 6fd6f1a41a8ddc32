"""The table for BERT in Hugging Face's files.

Names are those of `modeling_bert.py` (transformers). In files of a `BertModel` they have no prefix;
in files of other classes (`bert-base-uncased` is a `BertForPreTraining`) the prefix is `bert.`. Files
converted from TensorFlow call weight and bias of a norm `gamma` and `beta`.
"""

from collections.abc import Callable, Iterable, Mapping

from refseg_jax.weights.table import Rule, Table, linear, rename


def hf_bert(entries: Iterable[str], prefix: str = "") -> Table:
    """The table for files of every Hugging Face class that contains a BERT.

    Args:
        entries: names of the entries of the file (not used here).
        prefix: prefix of the tower's parameters in the model, with its dot.
    """
    del entries
    tower = r"(?:bert\.)?"
    embeddings, layer = rf"{tower}embeddings", rf"{tower}encoder\.layer\.(\d+)"
    ours = rf"{prefix}layers.\1"

    def table(name: str) -> Rule:
        source = rf"{embeddings}\.{name}_embeddings\.weight"
        target = {"token_type": "type"}.get(name, name)
        return rename(source, f"{prefix}{target}_embedding.embedding")

    rules = (
        table("word"),
        table("position"),
        table("token_type"),
        *_norm(rf"{embeddings}\.LayerNorm", f"{prefix}embedding_norm"),
        *linear(rf"{layer}\.attention\.self\.query", f"{ours}.attention.query"),
        *linear(rf"{layer}\.attention\.self\.key", f"{ours}.attention.key"),
        *linear(rf"{layer}\.attention\.self\.value", f"{ours}.attention.value"),
        *linear(rf"{layer}\.attention\.output\.dense", f"{ours}.attention.out"),
        *_norm(rf"{layer}\.attention\.output\.LayerNorm", f"{ours}.attention_norm"),
        *linear(rf"{layer}\.intermediate\.dense", f"{ours}.mlp.up"),
        *linear(rf"{layer}\.output\.dense", f"{ours}.mlp.down"),
        *_norm(rf"{layer}\.output\.LayerNorm", f"{ours}.mlp_norm"),
    )
    unread = {
        rf"{tower}embeddings\.position_ids": "0, 1, 2, ..., which older versions stored",
        rf"{tower}pooler\.dense\.(weight|bias)": "the sentence's projection; words are read",
        r"cls\..*": "the heads of BERT's own training: masked words and the next sentence",
    }
    return Table(rules, unread, {})


#: Format -> function that makes the table, from the names of a file's entries and the prefix of the
#: tower in the model.
FORMATS: Mapping[str, Callable[..., Table]] = {"hf_bert": hf_bert}


def _norm(source: str, target: str) -> tuple[Rule, Rule]:
    return (
        rename(rf"{source}\.(?:weight|gamma)", f"{target}.scale"),
        rename(rf"{source}\.(?:bias|beta)", f"{target}.bias"),
    )
