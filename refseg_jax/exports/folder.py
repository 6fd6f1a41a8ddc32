"""The folder of an exported model: its layout, its `config.json`, and checks of its files.

    <folder>/
        config.json             an `ExportConfig`; written last
        model.safetensors       parameters by dotted path, with this project's axis order; not in onnx
        tokenizer.json          for other readers, with tokenizer_config.json, vocab.json, merges.txt
        README.md               the model card
        clip/                   towers for transformers.CLIPModel if they are CLIP's; safetensors only
        encode_image.stablehlo  a graph, with encode_text and decode; stablehlo only
        encode_image.onnx       a graph with its weights inside, likewise; onnx only

The predictor and the exporter compare the SHA-256 of a file with `config.json` before they use it.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from refseg_jax.errors import UserError

CONFIG, WEIGHTS, TOKENIZER, CARD = "config.json", "model.safetensors", "tokenizer.json", "README.md"

#: Files that show that a folder is an export, even if `config.json` is missing.
_MARKS = (WEIGHTS, "*.stablehlo", "*.onnx")

_VERSION = 1

#: Which checkpoint of a run: its number, the newest, or the one with the best score.
Step = int | Literal["latest", "best"]


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Content of `config.json`: what a predictor reads, and where the model comes from.

    Attributes:
        format: key of `refseg_jax.exports.exporter.FORMATS`.
        model: the resolved config of the model (`name` and every field).
        data: `dataset` (names of all training datasets, separated by commas), `licences` (dataset ->
            text), `resize`, `context_length` and `tokenizer` (name of a file in the folder).
        eval: `threshold`, `resample` as `refseg_jax.images.resize.logits_on_canvas` takes it, and
            `protocol` as `refseg_jax.evaluation.protocols.build_protocols` takes it.
        step: number of updates that made the parameters.
        metrics: scores at that step, `{}` without an evaluation.
        graphs: name -> description of the graph (its file, inputs and outputs), `{}` without graphs.
        library: name and version of the code that wrote the folder.
        sha256: file -> digest of every file except `config.json` and the model card.
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
    sha256: dict[str, str] = dataclasses.field(default_factory=dict)
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
    return any(any(path.glob(mark)) for mark in _MARKS)


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yields a temporary folder to fill; renames it to `output` at the end, or removes it on an error.

    Raises:
        UserError: the output exists, or cannot be written.
    """
    if output.exists() or output.is_symlink():
        raise UserError(f"{output}: it exists already; name another --output, or delete it first")
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
    """Writes `config.json`, with the digests of all files that are in the folder now."""
    outside = (folder / CONFIG, folder / CARD)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path not in outside)
    digests = {path.relative_to(folder).as_posix(): _digest(path) for path in paths}
    content = dataclasses.asdict(dataclasses.replace(config, sha256=digests))
    # Hugging Face's tools read a model's type from this field.
    content = {"model_type": config.model["name"], **content}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n")


def read_config(folder: Path) -> ExportConfig:
    """Reads `config.json` of an export.

    Raises:
        UserError: the file is missing or damaged, or another program or a newer version wrote it.
    """
    path = folder / CONFIG
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and not content.keys() & {"version", "format", "sha256"}:
            raise UserError(
                f"{folder}: its {CONFIG} is another program's, this is neither a run nor an exported "
                "folder; weights of CLIP alone are for --config.init.clip"
            )
        if content["version"] > _VERSION:
            raise UserError(
                f"{path}: layout {content['version']}, this code knows {_VERSION}; use the version "
                f"that wrote it ({content.get('library')})"
            )
        fields = {field.name: content[field.name] for field in dataclasses.fields(ExportConfig)}
        for name in ("model", "data", "eval", "metrics", "graphs", "sha256"):
            if not isinstance(fields[name], dict):
                raise TypeError(f"{name!r} is no table")
        return ExportConfig(**fields)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; copy the whole exported folder") from None
    except KeyError as error:
        raise UserError(f"{path}: it has no {error}; export the checkpoint again") from None
    except (ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: not the config of an export ({reason}); export the checkpoint again"
        ) from None


def check_step(folder: Path, config: ExportConfig, step: Step) -> None:
    """Checks that the export holds the step that was asked for (`"latest"` always is).

    Raises:
        UserError: the folder holds another step.
    """
    if step not in ("latest", config.step):
        raise UserError(
            f"{folder}: it holds step {config.step} alone, not {step}; leave --step out"
        )


def verified(folder: Path, config: ExportConfig, name: str) -> Path:
    """Path of a file of the folder, after a comparison with its digest.

    Raises:
        UserError: the file is missing, has changed since it was written, or was never part of the
            export.
    """
    path = folder / name
    expected = config.sha256.get(name)
    if expected is None:
        raise UserError(f"{folder / CONFIG}: it has no digest of {name}; export again")
    try:
        found = _digest(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; copy the whole exported folder") from None
    if found != expected:
        raise UserError(
            f"{path}: truncated or changed since it was exported (its SHA-256 is not that of "
            f"{CONFIG}); copy it again, or export again"
        )
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
