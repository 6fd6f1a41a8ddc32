"""Examines a dataset before anybody trains on it.

    python -m tools.doctor --dataset=refcoco/unc --data_dir=data
    python -m tools.doctor --dataset=refcoco/unc --source_dir=DIR

With `--data_dir` it reads what `tools.build_dataset` built (of any name, one's own too); with
`--source_dir` it converts the downloaded folder, image by image, without writing a dataset.

It prints how the counts compare with the published ones and how often each check found something, and
writes a page with pictures of it (`--page`, default `doctor.html`). The exit code is 1 where there
is a *fault*: something that makes scores wrong or stops a run. Remarks (tiny targets, texts said
twice) are no faults: published datasets have them.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from input_pipeline.checks import (
    CANNOT_BE_BUILT,
    CHECKS,
    Finding,
    Identity,
    record_findings,
    split_findings,
)
from input_pipeline.datasets.conversion import Conversion, Outcome, converted
from input_pipeline.datasets.counts import Tally, compare
from input_pipeline.datasets.processes import ordered_map
from input_pipeline.datasets.registry import CONVERSIONS
from input_pipeline.schema import Record
from input_pipeline.sources import DatasetError, RecordSource, dataset_folder, split_names
from input_pipeline.workers import usable_cores
from refseg_jax.errors import UserError
from refseg_jax.naming import unknown
from tools.doctor_page import Example, picture, write_page

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
    """What is examined: items by split, and how a worker examines one."""

    splits: dict[str, Sequence[Any]]
    examine: Callable[[tuple[str, Any]], _Examined]
    findings: tuple[Finding, ...] = ()


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
        data_dir: where it is built, or `None`.
        source_dir: its downloaded files, or `None`.
        page: the file to write.
        splits: those to look at; empty for all.
        num_workers: processes.

    Returns:
        The number of faults.

    Raises:
        UserError: there is no such dataset or split.
    """
    conversion = CONVERSIONS.get(dataset)
    if source_dir is not None:
        subject = _raw(dataset, conversion, source_dir, splits)
    else:
        assert data_dir is not None
        subject = _built(dataset, data_dir, splits)
    found: collections.Counter[str] = collections.Counter()
    examples: dict[str, list[Example]] = collections.defaultdict(list)

    def note(example: Example) -> None:
        found[example.finding.check] += 1
        if len(examples[example.finding.check]) < _SHOWN:
            examples[example.finding.check].append(example)

    for finding in subject.findings:
        note(Example(finding, None))
    tallies = {split: Tally() for split in subject.splits}
    identities: dict[str, list[Identity]] = {split: [] for split in subject.splits}
    for split, examined in _all(subject, dataset, num_workers):
        tallies[split].merge(examined.tally)
        if examined.identity is not None:
            identities[split].append(examined.identity)
        for example in examined.examples:
            note(example)
    for finding in split_findings(identities):
        note(Example(finding, None))
    published = conversion.published if conversion else {}
    ordered = sorted(tallies, key=[*published, *tallies].index)
    counts = compare({split: tallies[split].result() for split in ordered}, published)
    order = [*CHECKS, CANNOT_BE_BUILT, *found]
    table = {check: found[check] for check in sorted(found, key=order.index)}
    title = f"{dataset} in {source_dir or data_dir}"
    write_page(page, title, counts, table, {check: examples[check] for check in table})
    _print(title, counts, table, examples, page)
    return sum(number for check, number in table.items() if examples[check][0].finding.is_fault)


def _built(dataset: str, data_dir: Path, wanted: Sequence[str]) -> _Subject:
    there = split_names(dataset_folder(str(data_dir), dataset))
    sources = {
        split: RecordSource(str(data_dir), dataset, split)
        for split in _chosen(dataset, wanted, there)
    }
    return _Subject(
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
    return _examine_record(record, split, ())


def _raw(
    dataset: str, conversion: Conversion | None, folder: Path, wanted: Sequence[str]
) -> _Subject:
    if conversion is None:
        raise UserError(unknown("dataset with a published format", dataset, CONVERSIONS))
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; check --source_dir")
    plan = conversion.read_plan(folder)
    there = [split for split, items in plan.splits.items() if items]
    findings = [Finding(CANNOT_BE_BUILT, "all", line) for line in plan.problems]
    findings += [Finding(note, "all", f"{number:,} of them") for note, number in plan.notes.items()]
    return _Subject(
        {split: plan.splits[split] for split in _chosen(dataset, wanted, there)},
        functools.partial(_examine_item, conversion),
        tuple(findings),
    )


def _examine_item(conversion: Conversion, item: tuple[str, Any]) -> _Examined:
    split, planned = item
    outcome: Outcome = converted(conversion.convert, conversion.source, planned)
    problems = [Finding(CANNOT_BE_BUILT, split, line) for line in outcome.problems]
    if outcome.record is None:
        return _Examined(Tally(), None, tuple(Example(finding, None) for finding in problems))
    record = outcome.record
    everything = tuple(range(len(record.targets)))
    name = f"{record.file_name} (image {record.image_id})"
    notes = [
        Finding(note, split, f"{name}: {number:,} of them", everything)
        for note, number in outcome.notes.items()
    ]
    return _examine_record(record, split, (*problems, *notes))


def _examine_record(record: Record, split: str, findings: Sequence[Finding]) -> _Examined:
    tally = Tally()
    tally.add(record)
    every = [*findings, *record_findings(record, split)]
    examples = tuple(Example(finding, picture(record, finding)) for finding in every)
    return _Examined(tally, Identity.of(record), examples)


def _chosen(dataset: str, wanted: Sequence[str], there: Sequence[str]) -> Sequence[str]:
    for split in wanted:
        if split not in there:
            raise UserError(unknown(f"split of {dataset}", split, there))
    return wanted or there


def _all(subject: _Subject, name: str, workers: int) -> Iterator[tuple[str, _Examined]]:
    items = [(split, item) for split, of_split in subject.splits.items() for item in of_split]
    stream = ordered_map(subject.examine, items, workers if workers > 1 else 0)
    with contextlib.closing(stream), tqdm(total=len(items), desc=name, unit="image") as bar:
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
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--data_dir", type=Path, help="where it is built")
    where.add_argument("--source_dir", type=Path, help="the downloaded files")
    parser.add_argument("--splits", type=lambda s: tuple(s.split(",")), default=(), help="e.g. val")
    parser.add_argument("--page", type=Path, default=Path("doctor.html"), help="the file to write")
    parser.add_argument(
        "--num_workers", type=int, default=usable_cores(), help="default: one a core"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = vars(_parser().parse_args(arguments))
    dataset = options.pop("dataset").replace("+", "_plus")
    try:
        return int(examine(dataset, **options) > 0)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
