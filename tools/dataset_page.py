"""Makes the tables of docs/datasets.md and docs/weights.md from the tables of facts.

    python -m tools.dataset_page            prints both pages
    python -m tools.dataset_page --write    writes them

Only the text between `<!-- NAME: begin -->` and `<!-- NAME: end -->` is replaced; the rest of the pages
is written by hand. The facts are in input_pipeline/facts/published.toml and
refseg_jax/weights/published.toml.
"""

import argparse
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from input_pipeline.facts.published import KINDS, DatasetFacts, all_facts
from refseg_jax.cli.command_line import command_parser, ended
from refseg_jax.cli.signals import leave
from refseg_jax.errors import UserError
from refseg_jax.weights.published import PublishedWeights, all_weights

ROOT = Path(__file__).resolve().parents[1]


def datasets_table(facts: Iterable[DatasetFacts]) -> str:
    """Table of datasets; those that differ only in name and text share a row.

    A licence is a link to its number in `licences_list`.
    """
    rows: dict[tuple[str, ...], list[DatasetFacts]] = {}
    for entry in facts:
        licence = f"[{_numbers()[_licence(entry)]}](#licences)"
        rows.setdefault((_layout(entry), _splits(entry), licence), []).append(entry)
    return _table(
        ("name", "`DIR` holds", "splits, with published counts", "text", "licence"),
        (
            (
                _lines(f"`{e.name}`" for e in entries),
                layout,
                splits,
                _lines(map(_text, entries)),
                number,
            )
            for (layout, splits, number), entries in rows.items()
        ),
    )


def licences_list() -> str:
    """Numbered list of all licences, each once."""
    return "".join(f"{number}. {text}\n" for text, number in _numbers().items())


def sources_table(facts: Iterable[DatasetFacts]) -> str:
    """Table of titles, papers and images; datasets with the same ones share a row."""
    pages: dict[tuple[str, ...], dict[str, None]] = {}
    for e in facts:
        paper = f"[{e.citation}](https://arxiv.org/abs/{e.arxiv})" if e.arxiv else e.citation
        row = (e.title, paper or "none", e.images, f"`{e.image_id}`")
        pages.setdefault(row, {}).update(dict.fromkeys(e.homepage.split()))
    return _table(
        ("dataset", "paper", "images", "`image_id` of a record"),
        ((title + _links(found), *cells) for (title, *cells), found in pages.items()),
    )


def weights_table(weights: Iterable[PublishedWeights]) -> str:
    """Table of published weights, one row per entry."""
    return _table(
        ("name", "what", "`--format`", "pixels", "mean and deviation", "fits", "licence"),
        (
            (
                f"[`{w.name}`]({w.address})" if w.hub or w.file else f"[{w.name}]({w.address})",
                w.what,
                f"`{w.format}`",
                f"{w.input_size} x {w.input_size}" if w.input_size else "none: words",
                {"clip": "CLIP's", "imagenet": "ImageNet's", "": "none"}[w.colours],
                ", ".join(f"`{name}`" for name in w.fits),
                w.licence + _read(w.licence_source),
            )
            for w in weights
        ),
    )


def digests_table(weights: Iterable[PublishedWeights]) -> str:
    """Table of the known SHA-256 digests."""
    rows = [(f"`{w.file}`", f"`{w.sha256}`") for w in weights if w.sha256]
    return _table(("file", "SHA-256"), rows)


#: Page -> name of a marker -> function that makes the table there.
PAGES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "docs/datasets.md": {
        **{kind: lambda kind=kind: datasets_table(_of_kind(kind)) for kind in KINDS},
        "licences": licences_list,
        "sources": lambda: sources_table(all_facts().values()),
    },
    "docs/weights.md": {
        "published weights": lambda: weights_table(all_weights().values()),
        "digests": lambda: digests_table(all_weights().values()),
    },
}


def filled(page: str, text: str) -> str:
    """Returns the text of a page with new tables.

    Args:
        page: key of `PAGES`.
        text: present text of the page.

    Raises:
        UserError: a marker is missing or occurs twice.
    """
    for name, make in PAGES[page].items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise UserError(f"{page}: not one {begin.strip()} and one {end.strip()}; put them back")
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


def _of_kind(kind: str) -> list[DatasetFacts]:
    return [entry for entry in all_facts().values() if entry.kind == kind]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _lines(texts: Iterable[str]) -> str:
    """Joins texts as lines of a cell, each once."""
    return "<br>".join(dict.fromkeys(texts))


def _layout(entry: DatasetFacts) -> str:
    """The layout of the source folder, with names of files and folders as code."""
    words = []
    for word in entry.layout.split():
        name = word.strip("(),.")
        is_file = any(mark in name for mark in "/*_") or name.endswith((".json", ".txt", ".zip"))
        words.append(word.replace(name, f"`{name}`") if is_file else word)
    return " ".join(words) or "nothing: it is drawn"


def _splits(entry: DatasetFacts) -> str:
    """The splits, each with its published counts."""
    lines = []
    for split in entry.splits:
        counts = entry.published.get(split, {})
        words = ", ".join(f"{number:,} {name}" for name, number in counts.items())
        lines.append(f"{split}: {words}" if words else split)
    # Splits without any counts share a line.
    return _lines(lines) if entry.published else ", ".join(lines)


def _text(entry: DatasetFacts) -> str:
    templates = ", ".join(f"`{template}`" for template in entry.templates)
    return f"{entry.text}: {templates}" if templates else entry.text


def _licence(entry: DatasetFacts) -> str:
    return entry.terms + _read(entry.licence_source)


@functools.cache
def _numbers() -> Mapping[str, int]:
    """Licence -> its number, in the order of the page."""
    ordered = (entry for kind in KINDS for entry in _of_kind(kind))
    texts = dict.fromkeys(_licence(entry) for entry in ordered)
    return {text: number for number, text in enumerate(texts, 1)}


def _read(source: str) -> str:
    """Links to the places where a licence is stated, or (?) if it was not read at its source."""
    return " (?)" if source == "not read" else _links(s for s in source.split() if "://" in s)


def _links(addresses: Iterable[str]) -> str:
    links = [f"[{number}]({address})" for number, address in enumerate(addresses, 1)]
    return f" ({', '.join(links)})" if links else ""


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = command_parser("tools.dataset_page", __doc__)
    parser.add_argument("--write", action="store_true", help="write the pages")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    write = make_parser().parse_args(arguments).write

    def work() -> None:
        texts = {page: filled(page, (ROOT / page).read_text(encoding="utf-8")) for page in PAGES}
        for page, text in texts.items():
            if write:
                (ROOT / page).write_text(text, encoding="utf-8")
            print(f"written: {ROOT / page}" if write else text)

    return ended(work)


if __name__ == "__main__":
    leave(main())
