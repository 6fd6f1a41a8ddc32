"""Reads the table of facts about published datasets, `published.toml`, on first use.

Builds, build reports, the registry, the licences in checkpoints and the tables of docs/datasets.md are
made from it. The head of the file describes its form.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from refseg_jax.errors import UserError
from refseg_jax.naming import read_table, unknown

#: Names of the counts of a split. `refs`: referents, however many expressions each has. `no target`,
#: `one target` and `several targets`: expressions by their number of targets; the three add up to
#: `expressions`. `targets`: masks. `groups`: groups of images that share an expression.
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

#: Kinds of datasets; docs/datasets.md has a table of each.
KINDS = ("referring", "groups", "categories", "other")

#: Stands for the licence of a dataset that is not in the table.
UNKNOWN_LICENCE = "not known; ask whoever made the dataset"

#: Values of `licence_source` that are no address.
NO_ADDRESS = ("not stated", "not read", "this repository")

TABLE = Path(__file__).with_name("published.toml")
_NEVER_EMPTY = ("title", "description", "licence", "licence_source", "text", "images", "image_id")


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    """The facts about one dataset.

    Attributes:
        name: `"<dataset>[/<config>]"`, the value of `config.data.dataset`.
        kind: one of `KINDS`.
        title: the authors' name of the dataset.
        description: one line; a build stores it.
        homepage: address, or `""`.
        citation: authors, title, venue and year of the paper, or `""`.
        arxiv: arXiv id of the paper, or `""`.
        licence: licence of images and annotations; a build stores it.
        text_licence: licence of the expressions, or `""` if `licence` covers them.
        licence_source: addresses where the licence is stated, separated by blanks; or "not stated" (the
            authors state none), "not read" (the licence is known second-hand only) or "this repository".
        layout: content of the source folder, in one line; `""` if the dataset needs no source folder.
        splits: all splits that can be built, in the published order.
        published: split -> name out of `COUNTED` -> published count. Splits and counts that nobody
            published are missing.
        text: kind of text that the expressions are, e.g. "cleaned sentences".
        templates: forms of the prompts that `input_pipeline.prompts` makes of category names, e.g.
            `"{part} of {object}"`; empty if the dataset brings its own expressions.
        images: pool that the images come from, e.g. "COCO train2014".
        image_id: form of `Record.image_id`, e.g. `"<COCO id>"`.
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
            ValueError: a field has a wrong value; the message names it.
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
        """Licences of images, annotations and expressions, in one line."""
        return "; ".join(filter(None, (self.licence, self.text_licence)))


@functools.cache
def all_facts() -> Mapping[str, DatasetFacts]:
    """Name of a published dataset -> its facts, in the order of the table.

    Raises:
        ValueError: the table is damaged; the line names the entry and the field.
    """
    return read_table(TABLE, DatasetFacts)


def facts_of(name: str) -> DatasetFacts:
    """Facts about one published dataset.

    Raises:
        UserError: the table has no such dataset; the message names the nearest.
    """
    if name not in all_facts():
        raise UserError(unknown("dataset", name, all_facts()))
    return all_facts()[name]


def licences(datasets: Iterable[str]) -> dict[str, str]:
    """Name of a dataset, as in `config.data.dataset` -> its licences in one line; sorted by name."""
    return {name: _licence(name) for name in sorted(set(datasets))}


def _are_counts(value: Any, splits: tuple[str, ...]) -> bool:
    """Whether `value` maps splits, in the order of `splits`, to counts."""
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
    # Records of Scenes name a config ("scenes/<config>") that the table does not list.
    known = facts.get(dataset) or facts.get(dataset.partition("/")[0])
    if known:
        return known.terms
    # A name without a config means whichever config is built.
    configs = {f.terms: None for name, f in facts.items() if name.partition("/")[0] == dataset}
    return " or: ".join(configs) or UNKNOWN_LICENCE
