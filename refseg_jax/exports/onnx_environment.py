"""Makes the virtual environment that converts to ONNX, since jax2onnx needs an older Orbax."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from refseg_jax.errors import UserError, escaped

#: Packages of the environment. jax2onnx 0.17.1 requires orbax-checkpoint < 0.11.37.
PINS = (
    "jax2onnx==0.17.1",
    "jax==0.10.2",
    "jaxlib==0.10.2",
    "flax==0.12.8",
    "optax==0.2.8",
    "orbax-checkpoint==0.11.36",
    "equinox==0.13.8",
    "numpy==2.4.6",
    "ml_dtypes==0.6.0",
    "onnx==1.23.2",
    "onnx-ir==1.1.0",
    "onnxruntime==1.31.1",
    "safetensors==0.8.0",
)

#: File with the pins, which only a complete environment has.
_RECORD = "refseg_jax_pins.txt"


def ensure_environment(folder: Path | None = None) -> Path:
    """Returns the Python of the environment, and makes it if it is missing (half a minute, 1 GB).

    Args:
        folder: the environment's folder; by default one in the user's cache, named by a digest of the
            pins and the version of Python.

    Raises:
        UserError: the environment cannot be made, or the folder holds something else.
    """
    folder = _default_folder() if folder is None else folder.absolute()
    if not folder.exists():
        _make(folder)
    record, python = folder / _RECORD, folder / "bin" / "python"
    if not record.is_file() or record.read_text() != _content():
        raise UserError(
            f"{folder}: not an environment of this version for ONNX; name another folder with --env, "
            "or delete it if nothing else needs it"
        )
    if not python.exists():
        raise UserError(f"{folder}: the Python that it was made with is gone; delete it")
    return python


def clean_variables() -> dict[str, str]:
    """The environment variables without those that point a Python to foreign packages."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER")
    }


def _content() -> str:
    version = f"python {sys.version_info.major}.{sys.version_info.minor}"
    return "\n".join([version, *PINS]) + "\n"


def _default_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "refseg_jax" / f"onnx-{hashlib.sha256(_content().encode()).hexdigest()[:12]}"


def _make(folder: Path) -> None:
    note = f"note: making {folder} with jax2onnx in it, once; this downloads packages and takes minutes"
    print(escaped(note), file=sys.stderr, flush=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror}); name another folder with --env"
        ) from None
    try:
        _run([sys.executable, "-m", "venv", str(partial)], folder, "install Python's venv module")
        pip = [str(partial / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input"]
        _run(
            [*pip, "--disable-pip-version-check", *PINS],
            folder,
            "connect to the internet, or set PIP_INDEX_URL or PIP_FIND_LINKS to where the packages are",
        )
        (partial / _RECORD).write_text(_content())
        try:
            partial.rename(folder)
        except OSError:
            # Another process was faster; the caller checks the environment that it made.
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _run(command: list[str], folder: Path, cure: str) -> None:
    done = subprocess.run(
        command, env=clean_variables(), text=True, capture_output=True, check=False
    )
    if done.returncode:
        said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        # pip's first error gives the reason; its last line repeats that in fewer words.
        reason = next(
            (line for line in said if line.startswith("ERROR:")), said[-1] if said else ""
        )
        raise UserError(f"{folder}: making the environment failed ({reason[:200]}); {cure}")
