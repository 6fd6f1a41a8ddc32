"""What is known about published weights: the table `published.toml`, read when it is first asked for.

The table of docs/weights.md is made from it. The file begins with a description of its form.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path

from refseg_jax.naming import read_table, unknown

#: What weights are of: a tower or a whole model.
KINDS = ("clip", "swin", "bert", "rela", "unilseg")

#: Mean and deviation of the pixels, as `refseg_jax.images.colours` has them; "" for a text tower.
COLOURS = ("clip", "imagenet", "")

TABLE = Path(__file__).with_name("published.toml")
_NEVER_EMPTY = ("what", "format", "address", "licence", "licence_source")


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """The facts about one published file or repository of weights.

    Attributes:
        name: the hub id or the file's name, where there is one.
        what: architecture and training data.
        kind: out of `KINDS`.
        format: as `tools.import_weights --format` takes it.
        hub: id on the Hugging Face hub, or `""`.
        file: name of the file, or `""` (on the hub, the format's own names are looked for).
        address: where it is published.
        sha256: of the file in hexadecimal, or `""`.
        input_size: side of the square images that it was trained on, in pixels; 0 for a text tower.
        colours: out of `COLOURS`.
        licence: of the weights.
        licence_source: address where the licence is stated, or "not stated".
        fits: `"<model>:<preset>"` whose sizes it has.
    """

    name: str
    what: str
    kind: str
    format: str
    hub: str
    file: str
    address: str
    sha256: str
    input_size: int
    colours: str
    licence: str
    licence_source: str
    fits: tuple[str, ...]

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: one has a wrong value; the message names it.
        """
        for field in _NEVER_EMPTY:
            if not getattr(self, field).strip():
                raise ValueError(f"field {field!r} is empty")
        for field, known in (("kind", KINDS), ("colours", COLOURS)):
            if getattr(self, field) not in known:
                raise ValueError(f"field {field!r}: {unknown(field, getattr(self, field), known)}")
        if not re.fullmatch(r"([0-9a-f]{64})?", self.sha256):
            raise ValueError(f"field 'sha256' is {self.sha256!r:.80}")
        if self.input_size < 0:
            raise ValueError(f"field 'input_size' is {self.input_size}")
        for field, words in (("address", ()), ("licence_source", ("not stated",))):
            value = getattr(self, field)
            if value not in words and not re.fullmatch(r"https://\S+", value):
                raise ValueError(f"field {field!r} is {value!r:.80}: no address")


@functools.cache
def all_weights() -> Mapping[str, PublishedWeights]:
    """The facts about all published weights, by their names."""
    return read_table(TABLE, PublishedWeights)
