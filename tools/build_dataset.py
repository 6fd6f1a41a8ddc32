"""Builds a dataset of records.

    python -m tools.build_dataset --dataset=scenes --data_dir=data
    python -m tools.build_dataset --dataset=refcoco/unc --source_dir=DIR --data_dir=data
    python -m tools.build_dataset --dataset=jsonl --name=mine --source_dir=DIR --data_dir=data
    python -m tools.build_dataset --dataset=masks/coco --name=mine --source_dir=DIR --data_dir=data

`jsonl` is a folder of your own images with `train.jsonl` and the like (docs/own_data.md). `masks/coco`,
`masks/fiftyone` and `masks/label_studio` are what other tools and models export. For RefCOCO,
`DIR` is refer's `data` folder: `refcoco/refs(unc).p`, `refcoco/instances.json` and the images of
COCO train2014 at `images/train2014` (or `images/mscoco/images/train2014`, `train2014`, `images`; those
of COCO 2017 may lie at `images/train2017` and `images/val2017`, or at `train2017` and `val2017`).
`refcoco_plus/unc`, `refcocog/umd`, `refcocog/google` and `refcoco/google` are built in the same way; a
name with `_raw` at its end keeps the sentences as typed. docs/datasets.md has all other datasets.

`DIR` may also be an archive (zip, tar, tar.gz, tar.xz), or a folder in an archive
(`FILE.zip/inner/folder`). It is unpacked into `<data_dir>/unpacked-*`, which is removed after the build.
An interrupted build keeps that folder, and the same command uses it again.

The dataset is written to `<data_dir>/<name>/[<config>/]<version>`. This folder appears only when it is
complete. An interrupted build continues from its last complete file (a thousand images) when the command
is given again. A dataset that exists is not changed, and its source is not read; it is an error if it
lacks one of `--splits`. `--overwrite` builds it from the beginning, and removes the old one at the end.

`--runner=DirectRunner` (or another runner of Apache Beam; extra `beam`) writes the files by a Beam
pipeline. `--beam_options="--direct_num_workers=8 ..."` are the options of the runner.

If images or annotations are missing or damaged, they are listed and nothing is built. `--skip_missing`
builds the rest, and lists them in `build_report.txt` beside the records. That file also compares the
counts of each split with the published ones.

At the end, a line for each split tells how many of its texts are longer than 17, 20 and 77 tokens of
CLIP's vocabulary, which are the usual context lengths: models do not read what is beyond. With
`--config=configs/own_unires.py` it counts for the tokenizer and the `context_length` of that config.
"""

import argparse
import contextlib
import dataclasses
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from input_pipeline.building.beam import Runner
from input_pipeline.building.conversion import BuildError
from input_pipeline.building.counts import REPORT
from input_pipeline.datasets.registry import DATASETS, Entry, Request
from input_pipeline.formats.archives import source_folder
from input_pipeline.sources import split_names
from refseg_jax.cli.command_line import Result, add_json_flag, command_parser, ended
from refseg_jax.cli.signals import leave
from refseg_jax.errors import UserError
from refseg_jax.naming import unknown
from refseg_jax.storage.locks import exclusive
from tools.dataset_flags import add_dataset_flags
from tools.text_settings import built_lines, read_settings

#: Flag that a dataset needs -> what to do if it is missing.
_MISSING = {
    "source_dir": "give the folder of the files that it is made of",
    "name": "give the dataset a name (a-z, 0-9 and _)",
}
#: Flags that apply to some datasets only.
_OPTIONAL = frozenset(
    {"source_dir", "name", "image_dir", "mask_threshold", "splits", "skip_missing", "runner"}
)


def run(name: str, entry: Entry, request: Request, *, overwrite: bool, config: str = "") -> Result:
    """Builds a dataset, unless it exists, and prints its folder and its build report.

    Args:
        name: name of the dataset.
        entry: the code that builds it.
        request: the flags of the command line.
        overwrite: whether to replace a dataset that exists.
        config: for whose tokenizer and context length texts are counted, see
            `tools.text_settings.read_settings`.

    Returns:
        The folder, whether it was built now, its splits and what was printed.

    Raises:
        UserError: the request does not fit the dataset, or the source files cannot be used.
    """
    _check(name, entry, request)
    settings = read_settings(config, request.name or name)
    folder = entry.folder(request)
    # No lock if there is nothing to build: the folder may be read-only.
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
    lines = report.read_text().splitlines() if report.is_file() else []
    # A runner's dataset may be too large for one machine to read.
    if config or (built and request.runner is None):
        lines += built_lines(folder, request.data_dir, settings)
    for line in lines:
        print(line)
    splits = split_names(folder)
    return Result({"folder": folder, "built": built, "splits": splits, "lines": lines})


def _already(folder: Path, request: Request) -> str:
    """Message for a dataset that exists; raises a `UserError` if it lacks a wanted split."""
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
    """Builds the dataset, unless another process has done so meanwhile; returns whether it did."""
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
    for folder in request.image_dir:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; check --image_dir")


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
    """Keeps the old dataset until the block has built the new one; puts it back if that fails."""
    aside = _aside(folder)
    if folder.is_dir():
        folder.rename(aside)
    try:
        yield
    finally:
        _recover(folder)


@contextlib.contextmanager
def _full_disk(data_dir: Path) -> Iterator[None]:
    """Turns the `RuntimeError` by which ArrayRecord reports a failed write into a `UserError`."""
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
    """Puts the old dataset back if there is no new one, else removes it; also after a killed build."""
    aside = _aside(folder)
    if aside.is_dir():
        if folder.is_dir():
            shutil.rmtree(aside)
        else:
            aside.rename(folder)


def _aside(folder: Path) -> Path:
    return folder.with_name(f"replaced-{folder.name}")


def _dataset(name: str) -> str:
    """Parses the name of a dataset; accepts `refcoco+`, as papers write it."""
    plain = name.replace("+", "_plus")
    if plain not in DATASETS:
        raise argparse.ArgumentTypeError(unknown("dataset", plain, DATASETS))
    return plain


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = command_parser("tools.build_dataset", __doc__)
    parser.add_argument(
        "--dataset", type=_dataset, required=True, help="one of: " + ", ".join(sorted(DATASETS))
    )
    parser.add_argument("--name", default="", help="of a dataset of your own (jsonl, masks/...)")
    add_dataset_flags(parser, data_dir_required=True)
    parser.add_argument("--skip_missing", action="store_true", help="build what there is")
    parser.add_argument("--runner", default="", help="of Apache Beam, e.g. DirectRunner")
    parser.add_argument("--beam_options", type=shlex.split, default=(), help="of the runner")
    parser.add_argument("--overwrite", action="store_true", help="build again what is there")
    add_json_flag(parser, "the folder, its splits and the report")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = vars(make_parser().parse_args(arguments))
    name, overwrite = options.pop("dataset"), options.pop("overwrite")
    config, report = options.pop("config"), options.pop("json")
    beam_options = tuple(options.pop("beam_options"))
    options["image_dir"] = tuple(options["image_dir"])
    options["runner"] = Runner(options["runner"], beam_options) if options["runner"] else None
    return ended(
        lambda: run(name, DATASETS[name], Request(**options), overwrite=overwrite, config=config),
        report=report,
    )


if __name__ == "__main__":
    leave(main())
