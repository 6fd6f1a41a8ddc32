"""Examines a dataset before anybody trains on it.

    python -m tools.doctor --dataset=refcoco/unc --data_dir=data
    python -m tools.doctor --dataset=refcoco/unc --source_dir=DIR [--data_dir=data]

With `--data_dir` alone it reads what `tools.build_dataset` built (of any name, one's own too); with
`--source_dir` it converts what was downloaded, image by image, without writing a dataset. `DIR` may
be an archive, as for a build; it is unpacked below `--data_dir`, or else among the system's temporary
files, and removed at the end.

It prints how the counts compare with the published ones and how often each check found something, and
writes a page with pictures of it (`--page`, default `doctor.html`). The exit code is 1 where there
is a *fault*: something that makes scores wrong or stops a run. Remarks (tiny targets, texts said
twice) are no faults: published datasets have them. A remark says, too, which training images are in
evaluation sets of the other datasets that are built in `--data_dir`.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from input_pipeline.archives import source_folder
from input_pipeline.checks import (
    CANNOT_BE_BUILT,
    CHECKS,
    Finding,
    Identity,
    leak_findings,
    record_findings,
    split_findings,
)
from input_pipeline.datasets.conversion import Conversion, Outcome, converted
from input_pipeline.datasets.counts import Tally, compare
from input_pipeline.datasets.processes import ordered_map
from input_pipeline.datasets.registry import CONVERSIONS
from input_pipeline.leakage import evaluation_images
from input_pipeline.schema import Record
from input_pipeline.sources import DatasetError, RecordSource, dataset_folder, split_names
from input_pipeline.workers import usable_cores
from refseg_jax.errors import UserError
from refseg_jax.naming import unknown
from tools.command_line import unwound_by_sigterm
from tools.doctor_page import Example, examples_of, write_page

#: Examples of a check that the page shows.
_SHOWN = 24


@dataclasses.dataclass(frozen=True)
class _Examined:
    """What a worker found in one record."""

    tally: Tally
    identity: Identity | None
    examples: tuple[Example, ...]


@dataclasses.dataclass(frozen=True)
class _Subject:
    """What is examined.

    Attributes:
        name: of the dataset, as `data_dir` has it.
        splits: items by split.
        examine: what a worker does with a split's item.
        facts: lines about the source.
        findings: of the whole.
    """

    name: str
    splits: dict[str, Sequence[Any]]
    examine: Callable[[tuple[str, Any]], _Examined]
    facts: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


class _Findings:
    """How often each check found something, and some examples of it."""

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
        """How often, by check, in the order of the checks."""
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
    splits: Sequence[str] = (),
    num_workers: int = 0,
) -> int:
    """Examines a dataset and says what it found.

    Args:
        dataset: its name.
        data_dir: where datasets are built: this one, unless `source_dir` is given, and others.
        source_dir: its downloaded files, or `None`.
        page: the file to write.
        splits: those to look at; empty for all.
        num_workers: processes.

    Returns:
        The number of faults.

    Raises:
        UserError: there is no such dataset or split.
    """
    with contextlib.ExitStack() as stack:
        if source_dir is not None:
            subject = _raw(dataset, stack.enter_context(_unpacked(source_dir, data_dir)), splits)
        else:
            assert data_dir is not None
            subject = _built(dataset, data_dir, splits)
        tallies, found = _look(subject, data_dir, num_workers)
    conversion = CONVERSIONS.get(dataset)
    published = conversion.published if conversion else {}
    ordered = sorted(tallies, key=[*published, *tallies].index)
    counts = compare({split: tallies[split].result() for split in ordered}, published)
    lines, table, examples = [*counts, *subject.facts], found.table(), found.examples()
    title = f"{dataset} in {source_dir or data_dir}"
    write_page(page, title, lines, table, examples)
    _print(title, lines, table, examples, page)
    return sum(number for check, number in table.items() if examples[check][0].finding.is_fault)


@contextlib.contextmanager
def _unpacked(source: Path, data_dir: Path | None) -> Iterator[Path]:
    """The folder that a source is; what an archive holds is removed however the block ends."""
    if source.is_dir():
        yield source
        return
    with (
        tempfile.TemporaryDirectory(prefix="doctor-", dir=data_dir) as room,
        source_folder(source, Path(room)) as folder,
    ):
        yield folder


def _look(
    subject: _Subject, data_dir: Path | None, workers: int
) -> tuple[dict[str, Tally], _Findings]:
    """Counts by split, and what all checks find."""
    # At first, so that a dataset beside this one that is damaged is said before the long part.
    sets = evaluation_images(str(data_dir)) if data_dir is not None else {}
    found = _Findings()
    found.add(Example(finding, None) for finding in subject.findings)
    tallies = {split: Tally() for split in subject.splits}
    identities: dict[str, list[Identity]] = {split: [] for split in subject.splits}
    try:
        for split, examined in _all(subject, workers):
            tallies[split].merge(examined.tally)
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
    return tallies, found


def _built(dataset: str, data_dir: Path, wanted: Sequence[str]) -> _Subject:
    folder = dataset_folder(str(data_dir), dataset)
    there = split_names(folder)
    sources = {
        split: RecordSource(str(data_dir), dataset, split)
        for split in _chosen(dataset, wanted, there)
    }
    return _Subject(
        folder.parent.relative_to(data_dir).as_posix(),
        {split: range(len(source)) for split, source in sources.items()},
        functools.partial(_examine_built, sources),
    )


def _examine_built(sources: dict[str, RecordSource], item: tuple[str, int]) -> _Examined:
    split, index = item
    try:
        record = sources[split][index]
    except DatasetError as error:
        finding = Finding("damaged record", split, str(error))
        return _Examined(Tally(), None, (Example(finding, None),))
    return _examine_record(record, split)


def _raw(dataset: str, folder: Path, wanted: Sequence[str]) -> _Subject:
    conversion = CONVERSIONS.get(dataset)
    if conversion is None:
        raise UserError(unknown("dataset with a published format", dataset, CONVERSIONS))
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder or archive; check --source_dir")
    plan = conversion.read_plan(folder)
    there = [split for split, items in plan.splits.items() if items]
    if not there and not plan.problems:
        raise UserError(
            f"{folder}: nothing of {dataset} is there; it must hold {conversion.layout}"
        )
    problems = [Finding(CANNOT_BE_BUILT, "all", line) for line in plan.problems]
    notes = _notes(plan.notes, "all", "annotation files")
    return _Subject(
        dataset,
        {split: plan.splits[split] for split in _chosen(dataset, wanted, there)},
        functools.partial(_examine_item, conversion),
        tuple(f"{name}: {number:,}" for name, number in plan.facts.items()),
        (*problems, *notes),
    )


def _examine_item(conversion: Conversion, item: tuple[str, Any]) -> _Examined:
    split, planned = item
    outcome: Outcome = converted(conversion.convert, conversion.source, planned)
    problems = [Finding(CANNOT_BE_BUILT, split, line) for line in outcome.problems]
    record = outcome.record
    if record is None:
        found = [*problems, *_notes(outcome.notes, split, "an image that is left out")]
        return _Examined(Tally(), None, tuple(Example(finding, None) for finding in found))
    everything = tuple(range(len(record.targets)))
    where = f"{record.file_name} (image {record.image_id})"
    return _examine_record(
        record, split, (*problems, *_notes(outcome.notes, split, where, everything))
    )


def _notes(
    notes: Mapping[str, int], split: str, where: str, targets: tuple[int, ...] = ()
) -> list[Finding]:
    return [
        Finding(note, split, f"{where}: {number:,} of them", targets, number)
        for note, number in notes.items()
    ]


def _examine_record(record: Record, split: str, findings: Sequence[Finding] = ()) -> _Examined:
    tally = Tally()
    tally.add(record)
    every = [*findings, *record_findings(record, split)]
    return _Examined(tally, Identity.of(record), examples_of(record, every))


def _chosen(dataset: str, wanted: Sequence[str], there: Sequence[str]) -> Sequence[str]:
    for split in wanted:
        if split not in there:
            raise UserError(unknown(f"split of {dataset}", split, there))
    return wanted or there


def _all(subject: _Subject, workers: int) -> Iterator[tuple[str, _Examined]]:
    items = [(split, item) for split, of_split in subject.splits.items() for item in of_split]
    stream = ordered_map(subject.examine, items, workers if workers > 1 else 0)
    with contextlib.closing(stream), tqdm(total=len(items), desc=subject.name, unit="image") as bar:
        for (split, _), examined in zip(items, stream, strict=True):
            bar.update()
            yield split, examined


def _print(
    title: str,
    counts: Sequence[str],
    table: dict[str, int],
    examples: dict[str, list[Example]],
    page: Path,
) -> None:
    print(title, *counts, "", sep="\n")
    for check, number in table.items():
        first = examples[check][0].finding
        print(f"{'fault' if first.is_fault else 'remark':<7}{number:>9,}  {check}")
        print(f"{'':<18}e.g. {first.split}: {first.text}")
    print(f"{page}: " + ("what was found, with pictures" if table else "nothing was found"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--dataset", required=True, help="e.g. refcoco/unc, or one's own name")
    parser.add_argument("--data_dir", type=Path, help="where it, or others, are built")
    parser.add_argument("--source_dir", type=Path, help="the downloaded files")
    parser.add_argument("--splits", type=lambda s: tuple(s.split(",")), default=(), help="e.g. val")
    parser.add_argument("--page", type=Path, default=Path("doctor.html"), help="the file to write")
    parser.add_argument(
        "--num_workers", type=int, default=usable_cores(), help="default: one a core"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    if options["data_dir"] is None and options["source_dir"] is None:
        parser.error("give --data_dir or --source_dir")
    dataset = options.pop("dataset").replace("+", "_plus")
    try:
        with unwound_by_sigterm():
            return int(examine(dataset, **options) > 0)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
