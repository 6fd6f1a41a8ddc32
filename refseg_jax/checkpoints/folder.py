"""The checkpoints folder of one run: lists, ranks and deletes step folders.

Its layout:

    <workdir>/checkpoints/
        1200/                   one step
            manifest.json       digests; written last, see `refseg_jax.checkpoints.manifest`
            run/run.json        step, config, scores, shape and dtype of every array
            data/process_0_of_2.json   state of each process's data iterator
            state/              the arrays
        1300.orbax-checkpoint-tmp...   unfinished; never read, and deleted by the next save
        1300.outdated           being deleted

Other names, such as `1200.backup`, are the user's: they are neither read nor deleted.

A bucket renames nothing. There, a step folder has its name from the start and is complete once it has
a manifest or Orbax's mark; both are the first to go when it is deleted.
"""

import contextlib
import dataclasses
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from absl import logging

from refseg_jax.checkpoints import manifest
from refseg_jax.checkpoints.manifest import Soundness
from refseg_jax.errors import UserError
from refseg_jax.storage import buckets

#: The file of a step folder that holds its `RunRecord`.
RECORD = "run/run.json"

#: File that Orbax writes last into a step folder in a bucket.
_COMMITTED = "commit_success.txt"

#: Remains of an interrupted save (Orbax's name for it) or deletion, on a disk.
_REMAINS = re.compile(r"\d+\.(orbax-checkpoint-tmp.*|outdated)", re.ASCII)


class DamagedError(Exception):
    """A checkpoint cannot be used; one line with the file and the reason."""


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """Content of `run/run.json`.

    Attributes:
        step: number of updates done.
        config: the resolved experiment config.
        arrays: name -> `(dtype, shape)` of every array of the state.
        processes: number of processes that wrote the checkpoint.
        metrics: scores at this step, `{}` without an evaluation; in the file, a value that is not
            finite is `None`.
        best_metric: name of the score that ranks the checkpoints, or `None`.
        best_mode: `"max"` or `"min"`, as in `Checkpointer`.
    """

    step: int
    config: dict[str, Any]
    arrays: dict[str, tuple[str, tuple[int, ...]]]
    processes: int
    metrics: dict[str, float | None]
    best_metric: str | None
    best_mode: str

    @property
    def score(self) -> float | None:
        """The score that ranks the checkpoints, negated for `"min"`; `None` without a finite one."""
        value = self.metrics.get(self.best_metric) if self.best_metric else None
        if value is None or not math.isfinite(value):
            return None
        return value if self.best_mode == "max" else -value

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values, for `read_record`."""
        finite = {
            k: v if v is not None and math.isfinite(v) else None for k, v in self.metrics.items()
        }
        return {**dataclasses.asdict(self), "metrics": finite}


def read_record(folder: Path) -> RunRecord:
    """Reads the record of one step folder.

    Raises:
        DamagedError: the file is missing, or its content is not a `RunRecord`.
    """
    path = folder / RECORD
    fields = read_json(path)
    try:
        arrays = {k: (str(d), tuple(map(int, s))) for k, (d, s) in fields.pop("arrays").items()}
        record = RunRecord(arrays=arrays, **fields)
        numbers = [*record.metrics.values(), record.step, record.processes]
        if not isinstance(record.config, dict) or not all(
            n is None or isinstance(n, int | float) for n in numbers
        ):
            raise TypeError("wrong types")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path}: not the record of a checkpoint ({error})") from error
    return record


def check_name(folder: Path, record: RunRecord) -> None:
    """Checks that a step folder has the name of its step, so that no checkpoint passes for another.

    Raises:
        UserError: the folder was renamed, or copied under another name.
    """
    if folder.name != str(record.step):
        raise UserError(
            f"{folder}: it holds checkpoint {record.step} under another name (its {RECORD} says "
            f"so); rename the folder to {record.step}, or move it out of the run"
        )


def read_json(path: Path) -> Any:
    """Reads a JSON file of a checkpoint.

    Raises:
        DamagedError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        if buckets.is_remote(path) and buckets.trouble(error):
            raise
        raise DamagedError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: not JSON ({error})") from error


def steps(directory: Path) -> dict[int, Path]:
    """Step -> folder, in ascending order; empty, unfinished and other folders are left out."""
    if not directory.is_dir():
        return {}
    found = {
        int(path.name): path
        for path in directory.iterdir()
        if _is_step(path.name) and path.is_dir() and _complete(path)
    }
    return dict(sorted(found.items()))


def locate(path: Path) -> tuple[Path, int | None]:
    """The checkpoints folder that a path means, and the step if the path is a step folder.

    Args:
        path: a run's workdir, its checkpoints folder, or one step folder.

    Raises:
        UserError: `path` holds no checkpoint, or is a step folder under another name.
    """
    path = buckets.absolute(path)
    if _is_step(path.name) and (path / "run").is_dir():
        return path.parent, int(path.name)
    if (path / RECORD).is_file():
        with contextlib.suppress(DamagedError):
            check_name(path, read_record(path))
    for directory in (path / "checkpoints", path):
        if steps(directory):
            return directory, None
    reason = "it is a file" if path.is_file() else "there is no such folder"
    raise UserError(
        f"{path}: {'it holds no checkpoint' if path.is_dir() else reason}; name the folder of a run, "
        "of its checkpoints, of one step or of an export"
    )


def _complete(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    return bool(names & {manifest.NAME, _COMMITTED} if buckets.is_remote(folder) else names)


def _is_step(name: str) -> bool:
    """Whether a folder of this name is a step's: digits without leading zeros."""
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def step_choice(text: str) -> int | Literal["latest", "best"]:
    """Parses the value of a command line's `--step`.

    Raises:
        UserError: it is neither a number nor `latest` or `best`.
    """
    if text == "latest" or text == "best":
        return text
    if text.isdecimal() and len(text) < 20:
        return int(text)
    raise UserError(f"--step={text[:40]}: give latest, best or the number of a checkpoint")


def usable(order: list[Path]) -> Iterator[Path]:
    """Yields sound folders in the given order, then unverified ones; warns of every other folder."""
    unverified = []
    for folder in order:
        soundness, reason = manifest.check(folder)
        if soundness is Soundness.SOUND:
            for name in manifest.added(folder, manifest.read(folder)):
                logging.warning("checkpoint %s: %s is no part of it, not used", folder.name, name)
            yield folder
        elif soundness is Soundness.UNVERIFIED:
            logging.warning("checkpoint %s is unverified, used last: %s", folder.name, reason)
            unverified.append(folder)
        else:
            logging.warning("checkpoint %s is damaged, not used: %s", folder.name, reason)
    for folder in unverified:
        logging.warning("using the unverified checkpoint %s: no sound one is left", folder)
        yield folder


def by_score(directory: Path) -> list[Path]:
    """Step folders with a `RunRecord.score`, best first; of equal scores the newest first."""
    scored = []
    for step, folder in steps(directory).items():
        try:
            score = read_record(folder).score
        except DamagedError as error:
            logging.warning("checkpoint %d is damaged, not used: %s", step, error)
            continue
        if score is not None:
            scored.append((score, step, folder))
    return [folder for *_, folder in sorted(scored, reverse=True)]


def outdated(directory: Path, *, keep_latest: int, keep_best: int, damaged: set[int]) -> list[Path]:
    """Step folders to delete: older than the newest `keep_latest` sound ones, and not among the best.

    A folder counts as sound if it has a manifest and is not in `damaged`, so that no usable
    checkpoint is deleted in favour of an unusable one.

    Args:
        directory: the checkpoints folder.
        keep_latest: how many of the newest to keep, at least 1.
        keep_best: how many of the best to keep beside them.
        damaged: steps that are known to be unusable.
    """
    every = steps(directory)
    sound = [s for s, folder in every.items() if manifest.present(folder) and s not in damaged]
    if len(sound) < keep_latest:
        return []
    ranked = [int(folder.name) for folder in by_score(directory)]
    best = [step for step in ranked if step in sound][:keep_best]
    return [every[s] for s in every if s < sound[-keep_latest] and s not in best]


def remove(folder: Path) -> None:
    """Deletes a step folder. If killed half-way, the remains no longer count as a checkpoint."""
    aside = set_aside(folder)
    if aside is not None:
        shutil.rmtree(aside)


def set_aside(folder: Path) -> Path | None:
    """Renames a step folder so that it no longer counts as a checkpoint; `sweep` deletes it.

    In a bucket, where that would copy it, it is deleted: `None`.
    """
    if buckets.is_remote(folder):
        for name in (manifest.NAME, _COMMITTED):
            (folder / name).unlink(missing_ok=True)
        buckets.remove_tree(folder)
        return None
    aside = folder.with_name(f"{folder.name}.outdated")
    shutil.rmtree(aside, ignore_errors=True)
    return folder.rename(aside)


def sweep(directory: Path) -> None:
    """Deletes the remains of interrupted saves and deletions. No save may be in progress."""
    remote = buckets.is_remote(directory)
    for path in directory.iterdir() if directory.is_dir() else ():
        remains = _is_step(path.name) if remote else _REMAINS.fullmatch(path.name)
        if remains and path.is_dir() and not (remote and _complete(path)):
            buckets.remove_tree(path)


@contextlib.contextmanager
def another_version(path: str | Path) -> Iterator[None]:
    """Turns the errors of using a checkpoint from another version into one line that names it.

    Args:
        path: path of the checkpoint, for the message.

    Raises:
        UserError: instead of the block's `UserError`, `AttributeError`, `KeyError`, `TypeError`,
            `ValueError` or `ZeroDivisionError`.
    """
    try:
        yield
    except UserError as error:
        named = str(error).startswith((str(path), str(Path(path).absolute())))
        raise UserError(str(error) if named else f"{path}: {error}") from None
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, KeyError):
            reason = f"its config has no {reason}"
        raise UserError(
            f"{path}: the checkpoint is of another version ({reason}); use the version of the "
            "code that wrote it"
        ) from None
