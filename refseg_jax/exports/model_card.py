"""Writes the text of the model card (README.md) of an exported model."""

import re
from collections.abc import Mapping

from refseg_jax.batch import GRANULARITIES
from refseg_jax.errors import escaped
from refseg_jax.evaluation.protocols import PROTOCOLS, build_protocols
from refseg_jax.exports.folder import ExportConfig
from refseg_jax.reporting.tables import full_text

_NOT_RECORDED = "not recorded"

_LOADING = """## Use it

With refseg_jax, from {where}:

```python
from refseg_jax import Predictor

predictor = Predictor.from_checkpoint("{path}")
for prediction in predictor.predict("picture.jpg", ["the red car", "the wheels of the red car"]):
    print(prediction.present, prediction.score, prediction.mask.shape)
```
"""


def model_card(config: ExportConfig, command: str, notes: Mapping[str, str], hub: str = "") -> str:
    """The text of the card.

    Args:
        config: config of the export.
        command: command line that made the export.
        notes: heading -> paragraph, from the writer of the format.
        hub: `OWNER/NAME` on the Hugging Face hub, `""` if it is not to lie there.
    """
    dataset = escaped(str(config.data.get("dataset") or ""))
    recorded = {
        escaped(name): escaped(text) for name, text in config.data.get("licences", {}).items()
    }
    # The datasets of a run's start are recorded, too.
    names = dict.fromkeys([*dataset.split(", "), *recorded])
    licences = {name: recorded.get(name, _NOT_RECORDED) for name in names}
    licence = "; ".join(f"{name}: {text}" for name, text in licences.items())
    if len(licences) == 1:
        licence = licences[dataset]
    name = config.model["name"]
    parts = [
        f"---\nlibrary_name: refseg_jax\npipeline_tag: image-segmentation\n"
        f"tags: [{name}, refseg_jax, jax, referring-image-segmentation]\n---",
        f"# {name} on {dataset or 'an unnamed dataset'}",
        "Language-guided segmentation: an image and expressions in, one mask for each out.",
        f"- dataset: {dataset or _NOT_RECORDED}\n- licence of the data: {licence}\n"
        f"- updates: {config.step}\n- input: {config.model.get('image_size')} pixels square, "
        f"{config.data['resize']}; {config.data['context_length']} tokens, SOS and EOS included\n"
        f"- threshold of probabilities: {config.eval['threshold']}, resampled as "
        f"`{config.eval.get('resample', 'logits')}`\n- code: {escaped(config.library)}",
        f"## Scores\n\n{_scores(config)}",
        f"## Made by\n\n{_block(escaped(command))}",
        _loading(hub),
        *(f"## {heading}\n\n{text}" for heading, text in notes.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _loading(hub: str) -> str:
    where = "the hub or a copy of this folder" if hub else "this folder alone"
    return _LOADING.strip().format(where=where, path=f"hf://{hub}" if hub else "FOLDER")


def _scores(config: ExportConfig) -> str:
    """Tables of the scores at the exported step, in percent."""
    protocols = build_protocols(config.eval.get("protocol", "cris"))
    parts_of_tables = {*GRANULARITIES, *PROTOCOLS}
    prefixes = []
    for key in config.metrics:
        prefix = key.removesuffix(protocols[0].columns[0])
        whole = prefix.rpartition("/")[0].rpartition("/")[2] not in parts_of_tables
        if prefix != key and whole and not prefix.startswith("oracle/"):
            prefixes.append(prefix)
    if not prefixes:
        return "This checkpoint was not evaluated."
    tables = full_text(config.metrics, prefixes, protocols, config.eval["threshold"])
    heading = "In percent; a table is named by its evaluation's prefix, without one it is `test`."
    return f"{heading}\n\n{_block(tables)}"


def _block(text: str) -> str:
    """A block of code, fenced by more backticks than any that the text has."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"
