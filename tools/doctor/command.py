"""Examines a dataset before anybody trains on it.

    python -m tools.doctor --dataset=refcoco/unc --data_dir=data
    python -m tools.doctor --dataset=refcoco/unc --source_dir=DIR [--data_dir=data]
    python -m tools.doctor --dataset=jsonl --source_dir=FOLDER [--data_dir=data]

With `--data_dir` alone, it reads a dataset that `tools.build_dataset` has built, which may be your own.
With `--source_dir`, it converts the downloaded files image by image, without writing a dataset (`jsonl`
is a folder of your own: docs/own_data.md). `DIR` may be an archive, as for a build. It is unpacked below
`--data_dir` if that exists, else into the system's temporary folder, and removed at the end.

It compares the counts with the published ones, prints how often each check found something, and writes a
page (`--page`, default `doctor.html`) with pictures of the findings, and of a few expressions of each
split with their targets. The exit code is 1 if there is a *fault*, which makes scores wrong or stops a
run. *Remarks* (tiny targets, repeated texts) are no faults, because published datasets have them too.
They include training images that are in evaluation sets of other datasets built in `--data_dir`, and
texts of more than 17 tokens of CLIP's vocabulary, the shortest of the usual context lengths: models do
not read what is beyond. With `--config=configs/own_unires.py` it counts for the tokenizer and the
`context_length` of that config.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from input_pipeline.building.counts import Tally, compare, not_there
from input_pipeline.building.processes import ordered_map
from input_pipeline.checks import (
    CANNOT_BE_BUILT,
    CHECKS,
    Finding,
    Identity,
    leak_findings,
    record_findings,
    split_findings,
)
from input_pipeline.datasets.registry import CONVERSIONS
from input_pipeline.facts.published import facts_of
from input_pipeline.leakage import evaluation_images
from input_pipeline.schema import Record
from refseg_jax.cli.command_line import Result, add_json_flag, command_parser, ended, path
from refseg_jax.errors import UserError, escaped, shown
from refseg_jax.text.lengths import Lengths, count_tokens, quoted
from refseg_jax.text.tokenizers import build_tokenizer
from tools.dataset_flags import add_dataset_flags
from tools.doctor.page import Example, Sample, examples_of, sample_of, write_page
from tools.doctor.subjects import Reading, Subject, opened
from tools.text_settings import TextSettings, read_settings

#: Number of examples of a check on the page.
_SHOWN = 24
#: Number of sample pictures of a split, and of items in a row that are tried for each.
_SAMPLES, _TRIES = 4, 8


@dataclasses.dataclass(frozen=True)
class _Examined:
    """Findings of a worker in one record."""

    tally: Tally
    identity: Identity | None
    examples: tuple[Example, ...]
    lengths: Lengths = dataclasses.field(default_factory=Lengths)


class _Findings:
    """Number of findings of each check, and some examples."""

    def __init__(self) -> None:
        self._found: collections.Counter[str] = collections.Counter()
        self._examples: dict[str, list[Example]] = collections.defaultdict(list)

    def add(self, examples: Iterable[Example]) -> None:
        for example in examples:
            check = example.finding.check
            self._found[check] += example.finding.number
            if len(self._examples[check]) < _SHOWN:
                self._examples[check].append(example)

    def table(self) -> dict[str, int]:
        """Check -> number of findings, in the order of the checks."""
        order = [*CHECKS, CANNOT_BE_BUILT, *self._found]
        return {check: self._found[check] for check in sorted(self._found, key=order.index)}

    def examples(self) -> dict[str, list[Example]]:
        return {check: self._examples[check] for check in self.table()}


def examine(
    dataset: str,
    *,
    data_dir: Path | None,
    source_dir: Path | None,
    page: Path,
    image_dir: Sequence[Path] = (),
    mask_threshold: int | None = None,
    splits: Sequence[str] = (),
    num_workers: int = 0,
    config: str = "",
) -> Result:
    """Examines a dataset, prints the findings and writes the page.

    Args:
        dataset: name of the dataset.
        data_dir: folder of all built datasets, or `None`. It has the dataset, unless `source_dir` is
            given; evaluation sets of the others are compared with the training images.
        source_dir: downloaded files of the dataset, or `None` for a built dataset.
        page: the file to write.
        image_dir: folders besides `source_dir` that may hold the images of your own lines.
        mask_threshold: level (1..255) at which the masks of your own lines are cut, or `None`.
        splits: splits to examine; empty examines all.
        num_workers: number of processes.
        config: for whose tokenizer and context length texts are counted, see
            `tools.text_settings.read_settings`.

    Returns:
        Counts and findings; the exit code is 1 if there are faults.

    Raises:
        UserError: there is no such dataset or split, the files cannot be read, or the page is a folder.
    """
    if page.is_dir():
        raise UserError(f"--page={page}: is a folder; name a file")
    opening = opened(
        dataset,
        data_dir=data_dir,
        source_dir=source_dir,
        image_dir=image_dir,
        mask_threshold=mask_threshold,
        splits=splits,
    )
    settings = read_settings(config, dataset)
    with opening as subject:
        tallies, lengths, found = _look(subject, data_dir, num_workers, settings)
        samples = _samples(subject)
    published = facts_of(dataset).published if dataset in CONVERSIONS else {}
    ordered = sorted(tallies, key=[*published, *tallies].index)
    counted = {split: tallies[split].result() for split in ordered}
    counts = [*compare(counted, published), *([] if splits else not_there(counted, published))]
    texts = [lengths[split].line(split, *settings) for split in ordered]
    lines = [*counts, *subject.facts, *filter(None, texts)]
    table, examples = found.table(), found.examples()
    title = f"{dataset} in {source_dir or data_dir}"
    write_page(page, title, lines, table, examples, samples)
    _print(title, lines, table, examples)
    more = "examples of what was found" if table else "nothing was found"
    print(f"{page}: {len(samples)} sample pictures, {more}")
    findings = [_finding(check, number, examples[check][0]) for check, number in table.items()]
    faults = sum(finding["number"] for finding in findings if finding["fault"])
    content = {
        "dataset": dataset,
        "page": page,
        "splits": counted,
        "lines": lines,
        "findings": findings,
        "faults": faults,
    }
    return Result(content, int(faults > 0))


def _finding(check: str, number: int, example: Example) -> dict[str, Any]:
    first = example.finding
    told = {"split": first.split, "text": first.text}
    return {"check": check, "number": number, "fault": first.is_fault, "example": told}


def _look(
    subject: Subject, data_dir: Path | None, workers: int, settings: TextSettings
) -> tuple[dict[str, Tally], dict[str, Lengths], _Findings]:
    """Runs all checks; returns the counts and the lengths of texts of each split, and the findings."""
    # First, so that damage of another dataset is reported before the long part.
    sets = evaluation_images(str(data_dir)) if data_dir is not None else {}
    found = _Findings()
    found.add(Example(finding, None) for finding in subject.findings)
    tallies = {split: Tally() for split in subject.splits}
    lengths = {split: Lengths() for split in subject.splits}
    identities: dict[str, list[Identity]] = {split: [] for split in subject.splits}
    try:
        for split, examined in _all(subject, workers, settings):
            tallies[split].merge(examined.tally)
            lengths[split].merge(examined.lengths)
            if examined.identity is not None:
                identities[split].append(examined.identity)
            found.add(examined.examples)
    except BrokenProcessPool:
        raise UserError(
            f"{subject.name}: a worker process died, perhaps for want of memory; run it again with "
            "fewer --num_workers"
        ) from None
    own = {f"{subject.name}/{split}" for split in subject.splits}
    others = {name: ids for name, ids in sets.items() if name not in own}
    between = [*split_findings(identities), *leak_findings(identities, others)]
    found.add(Example(finding, None) for finding in between)
    return tallies, lengths, found


def _examine(
    read: Callable[[tuple[str, Any]], Reading], settings: TextSettings, item: tuple[str, Any]
) -> _Examined:
    record, found = read(item)
    if record is None:
        return _Examined(Tally(), None, tuple(Example(finding, None) for finding in found))
    tally = Tally()
    tally.add(record)
    lengths, cut = _texts(record, item[0], settings)
    every = [*found, *record_findings(record, item[0]), *cut]
    return _Examined(tally, Identity.of(record), examples_of(record, every), lengths)


def _texts(record: Record, split: str, settings: TextSettings) -> tuple[Lengths, list[Finding]]:
    """How long the texts of a record are, and those that are cut."""
    tokenizer, found, lengths = build_tokenizer(settings.tokenizer), [], Lengths()
    for expression in record.expressions:
        number = count_tokens(tokenizer, expression.text)
        lengths.add(expression.text, number)
        if number + settings.prefix > settings.lengths[0]:
            whole = " with the prefix of its anti-expression" if settings.prefix else ""
            check = (
                f"expression of more than {settings.lengths[0]} tokens{whole}, whose last words are "
                "cut"
            )
            takes = number + settings.prefix
            text = f"{quoted(expression.text)} ({shown(expression.id)}) takes {takes}"
            found.append(
                Finding(check, split, f"{shown(record.file_name)}: {text}", expression.targets)
            )
    return lengths, found


def _samples(subject: Subject) -> list[Sample]:
    """Sample pictures of each split, evenly spread over it."""
    found = []
    for split, items in subject.splits.items():
        number = min(_SAMPLES, len(items))
        starts = [place * len(items) // number for place in range(number)]
        for turn, (start, end) in enumerate(itertools.pairwise([*starts, len(items)])):
            # If an item has no picture, the next ones are tried.
            for place in range(start, min(end, start + _TRIES)):
                record = subject.read((split, items[place])).record
                sample = sample_of(record, split, turn) if record is not None else None
                if sample is not None:
                    found.append(sample)
                    break
    return found


def _all(subject: Subject, workers: int, settings: TextSettings) -> Iterator[tuple[str, _Examined]]:
    items = [(split, item) for split, of_split in subject.splits.items() for item in of_split]
    stream = ordered_map(
        functools.partial(_examine, subject.read, settings), items, workers if workers > 1 else 0
    )
    with contextlib.closing(stream), tqdm(total=len(items), desc=subject.name, unit="image") as bar:
        for (split, _), examined in zip(items, stream, strict=True):
            bar.update()
            yield split, examined


def _print(
    title: str,
    counts: Sequence[str],
    table: dict[str, int],
    examples: dict[str, list[Example]],
) -> None:
    print(title, *counts, "", sep="\n")
    for check, number in table.items():
        first = examples[check][0].finding
        print(f"{'fault' if first.is_fault else 'remark':<7}{number:>9,}  {check}")
        print(f"{'':<18}e.g. {first.split}: {escaped(first.text)}")


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = command_parser("tools.doctor", __doc__)
    parser.add_argument("--dataset", required=True, help="e.g. refcoco/unc, or one's own name")
    add_dataset_flags(parser, data_dir_required=False)
    parser.add_argument("--page", type=path, default=Path("doctor.html"), help="the file to write")
    add_json_flag(parser, "counts and findings")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser()
    options = vars(parser.parse_args(arguments))
    if options["data_dir"] is None and options["source_dir"] is None:
        parser.error("give --data_dir or --source_dir")
    dataset, report = options.pop("dataset").replace("+", "_plus"), options.pop("json")
    return ended(lambda: examine(dataset, **options), failed=2, report=report)
