"""What is known about published datasets: the table `published.toml`, read when it is first asked for.

Builds, their reports, the registry, the licences in checkpoints and the tables of docs/datasets.md are
made from it. The file begins with a description of its form.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from refseg_jax.errors import UserError
from refseg_jax.naming import read_table, unknown

#: What is counted of every dataset. `refs` are things described (expressions of one referent count
#: once); `no target`, `one target` and `several targets` part the expressions; `groups` are groups
#: of images that share an expression.
COUNTED = (
    "images",
    "refs",
    "expressions",
    "no target",
    "one target",
    "several targets",
    "targets",
    "groups",
)

#: What a dataset is about; docs/datasets.md has a table of each.
KINDS = ("referring", "groups", "categories", "other")

#: The licence of a dataset that is not in the table.
UNKNOWN_LICENCE = "not known; ask whoever made the dataset"

#: In the place of an address where a licence is stated.
NO_ADDRESS = ("not stated", "not read", "this repository")

TABLE = Path(__file__).with_name("published.toml")
_NEVER_EMPTY = ("title", "description", "licence", "licence_source", "text", "images", "image_id")


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    """The facts about one dataset.

    Attributes:
        name: as `config.data.dataset` takes it, `"<dataset>[/<config>]"`.
        kind: out of `KINDS`.
        title: as its authors call it.
        description: one line; a build stores it.
        homepage: address, or `""`.
        citation: authors, title, venue and year of the paper, or `""`.
        arxiv: id of the paper, or `""`.
        licence: of images and annotations; a build stores it.
        text_licence: of the expressions, where `licence` does not speak of them.
        licence_source: addresses where the licence is stated, with blanks between them, or "not stated"
            (the authors state none), "not read" (known from second hand) or "this repository".
        layout: one line, what the source folder holds; `""` for a dataset that needs none.
        splits: all that can be built, in the published order.
        published: split -> counts by the names of `COUNTED`; may lack splits and counts.
        text: what the expressions are, e.g. "cleaned sentences".
        templates: prompts about categories, e.g. `"{part} of {object}"`, as `input_pipeline.prompts`
            makes them.
        images: the pool that the images are from, e.g. "COCO train2014".
        image_id: what `Record.image_id` is made of.
    """

    name: str
    kind: str
    title: str
    description: str
    homepage: str
    citation: str
    arxiv: str
    licence: str
    text_licence: str
    licence_source: str
    layout: str
    splits: tuple[str, ...]
    published: Mapping[str, Mapping[str, int]]
    text: str
    templates: tuple[str, ...]
    images: str
    image_id: str

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: one has a wrong value; the message names it.
        """
        for field in _NEVER_EMPTY:
            if not getattr(self, field).strip():
                raise ValueError(f"field {field!r} is empty")
        if self.kind not in KINDS:
            raise ValueError(f"field 'kind': {unknown('kind', self.kind, KINDS)}")
        if not _are_counts(self.published, self.splits):
            raise ValueError(f"field 'published' is {self.published!r:.80}")
        for address in self.licence_source.split() if self.licence_source not in NO_ADDRESS else ():
            if not re.fullmatch(r"https?://\S+", address):
                known = ", ".join(NO_ADDRESS)
                raise ValueError(f"field 'licence_source' is {address!r}: an address, or {known}")

    @property
    def terms(self) -> str:
        """The licences of images, annotations and expressions."""
        return "; ".join(filter(None, (self.licence, self.text_licence)))


@functools.cache
def all_facts() -> Mapping[str, DatasetFacts]:
    """The facts about every published dataset, by its name."""
    return read_table(TABLE, DatasetFacts)


def facts_of(name: str) -> DatasetFacts:
    """The facts about a dataset.

    Raises:
        UserError: the table does not have it.
    """
    if name not in all_facts():
        raise UserError(unknown("dataset", name, all_facts()))
    return all_facts()[name]


def licences(datasets: Iterable[str]) -> dict[str, str]:
    """Dataset, as `config.data.dataset` names it -> its licence; in the order of the names."""
    return {name: _licence(name) for name in sorted(set(datasets))}


def _are_counts(value: Any, splits: tuple[str, ...]) -> bool:
    """Whether it is counts by split, the splits in their order."""
    return (
        isinstance(value, dict)
        and list(value) == [split for split in splits if split in value]
        and all(
            isinstance(counts, dict)
            and all(n in COUNTED and type(c) is int and c >= 0 for n, c in counts.items())
            for counts in value.values()
        )
    )


def _licence(dataset: str) -> str:
    facts = all_facts()
    # The records of Scenes name the config that drew them.
    known = facts.get(dataset) or facts.get(dataset.partition("/")[0])
    if known:
        return known.terms
    # A dataset's name alone means whichever of its configs is built.
    configs = {f.terms: None for name, f in facts.items() if name.partition("/")[0] == dataset}
    return " or: ".join(configs) or UNKNOWN_LICENCE
