"""Builds a dataset into records.

    python -m tools.build_dataset --dataset=scenes --data_dir=data
    python -m tools.build_dataset --dataset=refcoco/unc --source_dir=DIR --data_dir=data
    python -m tools.build_dataset --dataset=jsonl --name=mine --source_dir=DIR --data_dir=data

`jsonl` is a folder of one's own images with `train.jsonl` and the like (docs/own_data.md). For RefCOCO
`DIR` is refer's `data` folder: `refcoco/refs(unc).p`, `refcoco/instances.json` and the images of
COCO train2014 at `images/train2014` (or `images/mscoco/images/train2014`, `train2014`, `images`);
docs/datasets.md has what others need. `refcoco_plus/unc`, `refcocog/umd`,
`refcocog/google` and `refcoco/google` are built alike; `_raw` behind a name keeps sentences as they
were typed.

`DIR` may be an archive as well (zip, tar, tar.gz, tar.xz), or a folder within one
(`FILE.zip/inner/folder`): it is unpacked below `data_dir`, at `unpacked-*`, for the time of the build.
One that is stopped leaves it there, for the same command to go on with.

The dataset goes to `<data_dir>/<name>/[<config>/]<version>`. It gets that name when it is whole, so
that a build that fails or is stopped leaves nothing that could be taken for a dataset. A build that
was stopped goes on from its last whole file (a thousand images) when the command is given again. What
is built already is left as it is, and its source is not read; `--splits` that it lacks are an error.
`--overwrite` builds it again, from the beginning each time, and removes the old one at the end.

`--runner=DirectRunner` (or another of Apache Beam's; extra `beam`) makes the files by a Beam pipeline,
`--beam_options="--direct_num_workers=8 ..."` are its options.

Missing or damaged images and annotations are listed, and nothing is built; `--skip_missing` builds
the rest, and lists them in `build_report.txt` beside the records. That file says too, split by
split, whether the counts are the published ones.
"""

import argparse
import contextlib
import dataclasses
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from input_pipeline.building.beam import Runner
from input_pipeline.building.conversion import BuildError
from input_pipeline.building.counts import REPORT
from input_pipeline.datasets.registry import DATASETS, Entry, Request
from input_pipeline.formats.archives import source_folder
from input_pipeline.sources import split_names
from input_pipeline.workers import usable_cores
from refseg_jax.cli.command_line import unwound_by_sigterm
from refseg_jax.errors import UserError
from refseg_jax.locks import exclusive
from refseg_jax.naming import unknown

#: What to say where a dataset cannot do without a flag.
_MISSING = {
    "source_dir": "give the folder of the files that it is made of",
    "name": "give the dataset a name (a-z, 0-9 and _)",
}
#: Flags that apply to some datasets only.
_OPTIONAL = frozenset({"source_dir", "name", "splits", "skip_missing", "runner"})


def run(name: str, entry: Entry, request: Request, *, overwrite: bool) -> None:
    """Builds one dataset, unless it is there, and says what is in it.

    Raises:
        UserError: the request does not fit the dataset, or its files cannot be used.
    """
    _check(name, entry, request)
    folder = entry.folder(request)
    # What is built may lie where nothing can be written.
    if overwrite or _aside(folder).is_dir() or not folder.is_dir():
        aside = _aside(folder)

        def busy(who: str) -> BuildError:
            return BuildError(f"{folder}: {who} is building it; wait for it")

        with exclusive(aside.with_name(f"{aside.name}.lock"), busy):
            built = _build_anew(entry, request, folder, overwrite=overwrite)
    else:
        built = False
    print(f"{folder}: " + ("built" if built else _already(folder, request)))
    report = folder / REPORT
    if report.is_file():
        print(report.read_text(), end="")


def _already(folder: Path, request: Request) -> str:
    """What to say of a dataset that is left as it is; raises where it lacks what is asked for."""
    there = split_names(folder)
    missing = [split for split in request.splits if split not in there]
    if missing:
        raise UserError(
            f"{folder}: is built already, without {', '.join(missing)}; it has "
            f"{', '.join(there)}, and --overwrite builds it again"
        )
    unread = f", {request.source_dir} was not read" if request.source_dir else ""
    return f"is built already ({', '.join(there)}){unread}; --overwrite builds it again"


def _build_anew(entry: Entry, request: Request, folder: Path, *, overwrite: bool) -> bool:
    """Builds it, unless it turns out to be there; whether it did."""
    _recover(folder)
    if folder.is_dir() and not overwrite:
        return False
    if overwrite:
        shutil.rmtree(folder.with_name(f"unfinished-{folder.name}"), ignore_errors=True)
    with _set_aside(folder), _full_disk(request.data_dir):
        _build(entry, request)
    return True


def _check(name: str, entry: Entry, request: Request) -> None:
    for field in dataclasses.fields(request):
        given, flag = getattr(request, field.name), f"--{field.name}"
        if field.name in entry.needs and not given:
            raise UserError(f"{name}: no {flag}; {_MISSING[field.name]}")
        if field.name in _OPTIONAL - entry.needs - entry.takes and given:
            raise UserError(f"{name}: {flag} does not apply to it; leave it out")
    if request.name in {published.partition("/")[0] for published in DATASETS}:
        raise UserError(
            f"--name={request.name}: a dataset of that name is known already; take another"
        )
    source = request.source_dir
    if source is not None and not (source.is_dir() or _in_archive(source)):
        raise UserError(f"{source}: no such folder or archive; check --source_dir")


def _in_archive(source: Path) -> bool:
    return any(path.is_file() for path in (source, *source.parents))


def _build(entry: Entry, request: Request) -> None:
    if request.source_dir is None:
        entry.build(request)
        return
    with source_folder(request.source_dir, request.data_dir) as folder:
        entry.build(dataclasses.replace(request, source_dir=folder, given=request.source_dir))


@contextlib.contextmanager
def _set_aside(folder: Path) -> Iterator[None]:
    """Keeps an older build until the new one is whole, and puts it back if that fails."""
    aside = _aside(folder)
    if folder.is_dir():
        folder.rename(aside)
    try:
        yield
    finally:
        _recover(folder)


@contextlib.contextmanager
def _full_disk(data_dir: Path) -> Iterator[None]:
    """ArrayRecord says by a bare `RuntimeError` that it cannot write."""
    try:
        yield
    except RuntimeError as error:
        if "write() failed" not in str(error):
            raise
        reason = str(error).split("write() failed: ")[1].split(";")[0]
        raise UserError(
            f"{data_dir}: cannot be written ({reason}), nothing was built; free some space"
        ) from None


def _recover(folder: Path) -> None:
    """Ends what a build (or one that was killed) left: the old dataset goes back, or away."""
    aside = _aside(folder)
    if aside.is_dir():
        if folder.is_dir():
            shutil.rmtree(aside)
        else:
            aside.rename(folder)


def _aside(folder: Path) -> Path:
    return folder.with_name(f"replaced-{folder.name}")


def _dataset(name: str) -> str:
    """A name as a person types it (papers write `refcoco+`)."""
    plain = name.replace("+", "_plus")
    if plain not in DATASETS:
        raise argparse.ArgumentTypeError(unknown("dataset", plain, DATASETS))
    return plain


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.build_dataset",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--dataset", type=_dataset, required=True, help="one of: " + ", ".join(sorted(DATASETS))
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="where datasets lie")
    parser.add_argument("--source_dir", type=Path, help="the files that it is made of")
    parser.add_argument("--name", default="", help="of a dataset of your own (jsonl)")
    parser.add_argument(
        "--splits",
        type=lambda s: tuple(s.split(",")),
        default=(),
        help="e.g. val,testA; default: all",
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        default=usable_cores(),
        help="processes; default: one a core",
    )
    parser.add_argument("--skip_missing", action="store_true", help="build what there is")
    parser.add_argument("--runner", default="", help="of Apache Beam, e.g. DirectRunner")
    parser.add_argument("--beam_options", type=shlex.split, default=(), help="of the runner")
    parser.add_argument("--overwrite", action="store_true", help="build again what is there")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = vars(_parser().parse_args(arguments))
    name, overwrite = options.pop("dataset"), options.pop("overwrite")
    beam_options = tuple(options.pop("beam_options"))
    options["runner"] = Runner(options["runner"], beam_options) if options["runner"] else None
    try:
        with unwound_by_sigterm():
            run(name, DATASETS[name], Request(**options), overwrite=overwrite)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
