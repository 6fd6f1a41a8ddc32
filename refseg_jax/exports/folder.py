"""The folder of an exported model: its layout, its `config.json`, and checks of its files.

    <folder>/
        config.json             an `ExportConfig`
        model.safetensors       parameters by dotted path, with this project's axis order; not in onnx
        tokenizer.json          for other readers, with tokenizer_config.json, vocab.json, merges.txt
        README.md               the model card
        clip/                   towers for transformers.CLIPModel if they are CLIP's; safetensors only
        encode_image.stablehlo  a graph, with encode_text and decode; stablehlo only
        encode_image.onnx       a graph with its weights inside, likewise; onnx only
        manifest.json           size and SHA-256 of every other file, and its own; written last

Every reader compares the files with the manifest (`read_config`, `check_files`), as readers of
checkpoints do (`refseg_jax.checkpoints.manifest`).
"""

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from absl import logging

from refseg_jax.checkpoints import manifest
from refseg_jax.errors import UserError, shown
from refseg_jax.storage.buckets import on_disk

CONFIG, WEIGHTS, TOKENIZER, CARD = "config.json", "model.safetensors", "tokenizer.json", "README.md"

#: Files that show that a folder is an export, even if `config.json` is missing.
_MARKS = (WEIGHTS, "*.stablehlo", "*.onnx")

_VERSION = 1

_AGAIN = "copy the whole exported folder again, or export again"

#: Which checkpoint of a run: its number, the newest, or the one with the best score.
Step = int | Literal["latest", "best"]


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Content of `config.json`: what a predictor reads, and where the model comes from.

    Attributes:
        format: key of `refseg_jax.exports.exporter.FORMATS`.
        model: the resolved config of the model (`name` and every field).
        data: `dataset` (names of all training datasets, separated by commas), `licences` (dataset ->
            text), `resize`, `context_length`, `tokenizer` (name of a file in the folder) and
            `anti_prefix` (early exports lack it, and have no anti-expressions).
        eval: `threshold`, `resample` as `refseg_jax.images.resize.logits_on_canvas` takes it,
            `protocol` as `refseg_jax.evaluation.protocols.build_protocols` takes it and, of a calibrated
            checkpoint, `calibration` (`refseg_jax.checkpoints.calibration.Calibration`).
        step: number of updates that made the parameters.
        metrics: scores at that step, `{}` without an evaluation.
        graphs: name -> description of the graph (its file, inputs and outputs), `{}` without graphs.
        library: name and version of the code that wrote the folder.
        version: version of this layout.
    """

    format: str
    model: dict[str, Any]
    data: dict[str, Any]
    eval: dict[str, Any]
    step: int
    metrics: dict[str, float]
    graphs: dict[str, Any] = dataclasses.field(default_factory=dict)
    library: str = f"refseg_jax {metadata.version('refseg_jax')}"
    version: int = _VERSION

    def sections(self) -> dict[str, dict[str, Any]]:
        """The sections that a predictor reads, by their names in a run's config."""
        return {"model": self.model, "data": self.data, "eval": self.eval}


def is_export(path: Path) -> bool:
    """Whether the folder is an export, damaged or not, and not a run or a checkpoint.

    A workdir with checkpoints counts as a run even if somebody has put weight files into it.
    """
    if not path.is_dir() or (path / "checkpoints").is_dir():
        return False
    described = (path / CONFIG).is_file() and manifest.present(path)
    return described or any(any(path.glob(mark)) for mark in _MARKS)


@contextlib.contextmanager
def new_folder(output: Path, flag: str = "--output") -> Iterator[Path]:
    """Yields a temporary folder to fill; renames it to `output` at the end, or removes it on an error.

    Args:
        output: the folder.
        flag: by which it was given, for errors.

    Raises:
        UserError: the output exists, or cannot be written.
    """
    if output.exists() or output.is_symlink():
        raise UserError(f"{output}: it exists already; name another {flag}, or delete it first")
    scratch = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        # A folder within, because only the owner may read the one that `mkdtemp` creates.
        partial = scratch / output.name
        partial.mkdir()
        yield partial
        partial.rename(output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error})") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def write_config(folder: Path, config: ExportConfig) -> None:
    """Writes `config.json`, and then the manifest of all files that are in the folder now."""
    # Hugging Face's tools read a model's type from this field.
    content = {"model_type": config.model["name"], **dataclasses.asdict(config)}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n")
    manifest.write(folder)


def read_config(folder: Path) -> ExportConfig:
    """Reads `config.json` of an export, after a comparison with its digest.

    Raises:
        UserError: the file is missing or damaged, another program or another version wrote it, or the
            folder lies in a bucket: graphs and weights are mapped into memory.
    """
    on_disk(folder, "copy the exported folder to a disk: gcloud storage cp -r")
    path = folder / CONFIG
    _check_author(path)
    entries = _entries(folder, (CONFIG,))
    _raise_first(folder, {CONFIG: entries[CONFIG]})
    try:
        content = json.loads(path.read_bytes())
        if content["version"] != _VERSION:
            raise UserError(
                f"{path}: layout {content['version']}, this code knows {_VERSION}; use the version "
                f"that wrote it ({content.get('library')})"
            )
        fields = {field.name: content[field.name] for field in dataclasses.fields(ExportConfig)}
        for name in ("model", "data", "eval", "metrics", "graphs"):
            if not isinstance(fields[name], dict):
                raise TypeError(f"{name!r} is no table")
        return ExportConfig(**fields)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {_AGAIN}") from None
    except KeyError as error:
        raise UserError(f"{path}: it has no {error}; export the checkpoint again") from None
    except (ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: not the config of an export ({reason}); export the checkpoint again"
        ) from None


def check_files(folder: Path, needed: Iterable[str]) -> None:
    """Compares every file of an export with its digest.

    The model card is for people, who may edit it: a change of it is a warning, and so is a file that was
    added. Hidden files do not count.

    Args:
        folder: the export.
        needed: files that the caller reads, which must be part of the export.

    Raises:
        UserError: a file is missing, or has changed since it was exported; the line names the first.
    """
    entries = _entries(folder, needed)
    card = entries.pop(CARD, None)
    _raise_first(folder, entries)
    for line in manifest.differences(folder, {CARD: card} if card else {}):
        logging.warning("%s; the model is whole without it", line)
    for name in manifest.added(folder, {**entries, CARD: (0, "")}):
        logging.warning("%s: not part of the export, not read", folder / name)


def _check_author(path: Path) -> None:
    """Checks that `config.json` is that of an export, damaged or not.

    Raises:
        UserError: another program's is in its place.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(content, dict) and not content.keys() & {"version", "format", "graphs"}:
        raise UserError(
            f"{path.parent}: its {CONFIG} is another program's, this is neither a run nor an exported "
            "folder; weights of CLIP alone are for --config.init.clip"
        )


def _entries(folder: Path, needed: Iterable[str]) -> dict[str, manifest.Entry]:
    """The manifest's entries, with those of the `needed` files."""
    path = folder / manifest.NAME
    try:
        entries = manifest.read(folder)
    except FileNotFoundError:
        raise UserError(
            f"{path}: missing, and with it the digests of all files (exports of early versions have "
            f"none); {_AGAIN}"
        ) from None
    except manifest.ManifestError as error:
        raise UserError(f"{error}; {_AGAIN}") from None
    if lacking := next((name for name in needed if name not in entries), None):
        raise UserError(f"{path}: it has no digest of {shown(lacking)}; {_AGAIN}")
    return entries


def _raise_first(folder: Path, entries: Mapping[str, manifest.Entry]) -> None:
    line = next(manifest.differences(folder, entries), None)
    if line is not None:
        raise UserError(f"{line}; {_AGAIN}")


def check_step(folder: Path, config: ExportConfig, step: Step) -> None:
    """Checks that the export holds the step that was asked for (`"latest"` always is).

    Raises:
        UserError: the folder holds another step.
    """
    if step not in ("latest", config.step):
        raise UserError(
            f"{folder}: it holds step {config.step} alone, not {step}; leave --step out"
        )
