"""Checkpoints of a run: written while training goes on, verified before use.

Orbax (behind `arrays.py`) writes the arrays asynchronously, from all processes, and renames the
folder when it is complete. It detects neither a flipped bit nor an empty step folder, so this module
adds digests, chooses a sound checkpoint and deletes old ones.
"""

import dataclasses
import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from refseg_jax import sharding
from refseg_jax.checkpoints import folder as checkpoint_folder
from refseg_jax.checkpoints import manifest
from refseg_jax.checkpoints.arrays import (
    ArrayWriter,
    check_arrays,
    data_name,
    disk_trouble,
    named,
    read_arrays,
    signature,
)
from refseg_jax.checkpoints.folder import DamagedError, RunRecord
from refseg_jax.checkpoints.manifest import Soundness
from refseg_jax.errors import UserError
from refseg_jax.naming import unknown
from refseg_jax.storage import buckets

_NO_STEP = -1


class Restored(NamedTuple):
    """Content of a checkpoint.

    Attributes:
        step: number of updates done.
        state: the tree of the abstract state, with arrays in its layouts.
        data_state: state of this process's data iterator.
        config: the resolved experiment config of the run that wrote the checkpoint.
        scored: whether the checkpoint holds scores.
    """

    step: int
    state: Any
    data_state: Any
    config: dict[str, Any]
    scored: bool


class Checkpointer:
    """Writes and reads the checkpoints of one run.

    All processes make the same calls, each from one thread, and see the same folder.

    Attributes:
        directory: the folder of the checkpoints.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep_latest: int,
        best_metric: str | None = None,
        keep_best: int = 1,
        best_mode: Literal["max", "min"] = "max",
    ) -> None:
        """Prepares to use a folder of checkpoints, which need not exist yet.

        Args:
            directory: normally `<workdir>/checkpoints`; may lie in a bucket, whose objects have no
                other writer. A step is complete there when its manifest is.
            keep_latest: how many of the newest checkpoints are kept, at least 1.
            best_metric: name of the score that ranks the checkpoints; `None` ranks none.
            keep_best: how many of the best are kept beside the newest, at least 0.
            best_mode: whether a larger (`"max"`) or a smaller (`"min"`) score is better.

        Raises:
            ValueError: a number is too small, or the mode is unknown.
        """
        if keep_latest < 1 or keep_best < 0 or best_mode not in ("max", "min"):
            raise ValueError(
                f"checkpoints: keep_latest={keep_latest} must be at least 1, keep_best={keep_best} "
                f"at least 0, best_mode={best_mode!r} max or min"
            )
        self.directory = buckets.absolute(directory)
        self._keep_latest, self._keep_best = keep_latest, keep_best
        self._best_metric, self._best_mode = best_metric, best_mode
        self._damaged: set[int] = set()
        self._writer = ArrayWriter()
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future[None]] | None = None

    def save(
        self,
        step: int,
        state: Any,
        *,
        data_state: Any,
        config: dict[str, Any],
        metrics: Mapping[str, float] | None,
    ) -> None:
        """Starts to write a checkpoint; returns when the arrays are copied off the devices.

        A sound checkpoint of the same step is kept as it is; any other of that step is replaced.

        Args:
            step: number of updates done.
            state: any tree of arrays (`None` is an empty tree); may be donated afterwards.
            data_state: state of this process's data iterator, JSON.
            config: the resolved experiment config, JSON; process 0's is stored.
            metrics: scores at this step, or `None` without an evaluation.

        Raises:
            UserError: this or the previous checkpoint could not be written (full disk, permission).
        """
        self.wait()
        arrays = named(state)
        record = RunRecord(
            step=step,
            config=config,
            arrays={name: signature(leaf) for name, leaf in arrays.items()},
            processes=jax.process_count(),
            metrics=dict(metrics or {}),
            best_metric=self._best_metric,
            best_mode=self._best_mode,
        )
        self._check_best(metrics)
        folder = self.directory / str(step)
        try:
            if not self._make_room(folder):
                logging.warning("checkpoint %s is there already and sound: kept as it is", folder)
                return
            self._writer.start(folder, arrays, data_state, record)
        except Exception as error:
            raise self._explained(error, step) from error
        self._pending = step, self._background.submit(self._finish, folder)

    def add_scores(self, step: int, metrics: Mapping[str, float]) -> None:
        """Stores the scores of a checkpoint that was saved before its evaluation.

        Args:
            step: step of an existing checkpoint.
            metrics: scores at this step.

        Raises:
            UserError: the scores could not be written (full disk, permission).
            DamagedError: the record of the checkpoint cannot be read.
        """
        self.wait()
        self._check_best(metrics)
        if jax.process_index() != 0:
            return
        folder = self.directory / str(step)
        record = dataclasses.replace(checkpoint_folder.read_record(folder), metrics=dict(metrics))
        try:
            content = json.dumps(record.as_json()).encode()
            manifest.rewrite(folder, checkpoint_folder.RECORD, content)
            self._tidy()
        except OSError as error:
            raise self._explained(error, step) from error

    def wait(self) -> None:
        """Waits until the last checkpoint is complete, with its manifest.

        Raises:
            UserError: the checkpoint could not be written (full disk, permission).
        """
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        try:
            future.result()
        except Exception as error:
            raise self._explained(error, step) from error

    def close(self) -> None:
        """Waits for the last checkpoint, then releases the threads."""
        try:
            self.wait()
        finally:
            self._background.shutdown()
            self._writer.close()

    def restore_latest(self, abstract_state: Any) -> Restored | None:
        """Restores the newest sound checkpoint, or the newest unverified one if none is sound.

        Arrays are read straight into the given layouts. These may differ from those of the run that
        saved them: the number of devices and of processes may change. With another number of
        processes, every process gets the data state of process 0. That is right for iterators whose
        state is the same on every process, as grain's is when the slice by process comes after the
        shuffle.

        Args:
            abstract_state: a tree of `jax.ShapeDtypeStruct` with shardings.

        Returns:
            The checkpoint, or `None` if the folder holds none.

        Raises:
            UserError: the arrays differ from the abstract state, or no checkpoint is usable.
        """
        self.wait()
        order = list(reversed(checkpoint_folder.steps(self.directory).values()))
        primary = jax.process_index() == 0
        candidates = checkpoint_folder.usable(order) if primary else iter(())
        while True:
            folder = next(candidates, None)
            step = _from_primary(int(folder.name) if folder else _NO_STEP)
            if step == _NO_STEP:
                break
            folder = self.directory / str(step)
            try:
                restored: Restored | DamagedError = _restore(folder, abstract_state)
            except DamagedError as error:
                restored = error
            if sharding.everywhere(isinstance(restored, Restored)):
                assert isinstance(restored, Restored)
                # Every newer checkpoint is damaged or unverified.
                self._damaged = {s for s in checkpoint_folder.steps(self.directory) if s > step}
                return restored
            logging.warning("checkpoint %d is damaged, not used: %s", step, restored)
        if _from_primary(len(order)):
            raise UserError(
                f"{self.directory}: all {len(order)} checkpoints are damaged; put back a sound "
                f"copy, or move this folder away to train from the beginning{manifest.UNPROVEN}"
            )
        return None

    def _check_best(self, metrics: Mapping[str, float] | None) -> None:
        if metrics and self._best_metric is not None and self._best_metric not in metrics:
            logging.warning(
                "config.checkpoint.best_metric: %s; the best checkpoint is not kept",
                unknown("score", self._best_metric, metrics),
            )

    def _make_room(self, folder: Path) -> bool:
        """Sets a damaged folder of a step aside; false (on every process) if a sound one exists."""
        free = True
        if jax.process_index() == 0:
            if not buckets.is_remote(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
            checkpoint_folder.sweep(self.directory)
            if folder.exists():
                free = manifest.check(folder).soundness is not Soundness.SOUND
                if free:
                    # The sweep after this save deletes it, once the new one has replaced it.
                    checkpoint_folder.set_aside(folder)
        return bool(_from_primary(free))

    def _finish(self, folder: Path) -> None:
        """In the background: waits for the commit, writes the manifest, deletes old checkpoints."""
        self._writer.finish()
        if jax.process_index() != 0:
            return
        manifest.write(folder)
        self._damaged.discard(int(folder.name))
        try:
            self._tidy()
        except Exception as error:
            # The checkpoint is complete; the next save tidies again.
            if not buckets.is_remote(folder) or (reason := buckets.trouble(error)) is None:
                raise
            logging.warning("%s: outdated checkpoints stay: %s", self.directory, reason)

    def _tidy(self) -> None:
        """Deletes outdated checkpoints; no save may be in progress."""
        for old in checkpoint_folder.outdated(
            self.directory,
            keep_latest=self._keep_latest,
            keep_best=self._keep_best if self._best_metric else 0,
            damaged=self._damaged,
        ):
            checkpoint_folder.remove(old)
        checkpoint_folder.sweep(self.directory)

    def _explained(self, error: Exception, step: int) -> Exception:
        """A failed save as a one-line error; deletes its remains, keeps earlier checkpoints.

        A bucket that cannot be reached keeps the remains until the next save.
        """
        if buckets.is_remote(self.directory):
            told = buckets.trouble(error)
            line = f"{self.directory}: checkpoint {step} was not completed, earlier ones are kept"
            return error if told is None else UserError(f"{line}: {told}")
        reason = disk_trouble(error)
        if reason is None:
            return error
        if jax.process_index() == 0:
            checkpoint_folder.sweep(self.directory)
        folders = checkpoint_folder.steps(self.directory).items()
        kept = ", ".join(str(s) for s, folder in folders if manifest.present(folder)) or "none"
        return UserError(
            f"{self.directory}: checkpoint {step} was not completed ({reason}): make room there "
            "or choose another --workdir, then give the same command again; checkpoints kept: "
            f"{kept}"
        )


def _restore(folder: Path, abstract_state: Any) -> Restored:
    record = checkpoint_folder.read_record(folder)
    checkpoint_folder.check_name(folder, record)
    names = named(abstract_state)
    check_arrays(folder, record, names)
    arrays = read_arrays(folder, record, {name: leaf.sharding for name, leaf in names.items()})
    state = jax.tree.unflatten(jax.tree.structure(abstract_state), [arrays[n] for n in names])
    count, index = jax.process_count(), jax.process_index()
    if record.processes != count:
        logging.info(
            "checkpoint %d was written by %d processes, not %d: all take the data state of "
            "process 0",
            record.step,
            record.processes,
            count,
        )
        index = 0
    data_state = checkpoint_folder.read_json(folder / "data" / data_name(index, record.processes))
    return Restored(record.step, state, data_state, record.config, bool(record.metrics))


def _from_primary(value: int) -> int:
    """The value of process 0, on every process."""
    if jax.process_count() == 1:
        return int(value)
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))
