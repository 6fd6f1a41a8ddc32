"""Trainings that `main.py` does, several at a time: resumed, kept once finished, and stopped together.

A training is known by its whole config, which `main.py` writes into the folder: what was trained from
another one, be it by an edited config file, is never taken for it.
"""

import collections
import concurrent.futures
import dataclasses
import json
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from refseg_jax.errors import UserError
from refseg_jax.reporting.tables import read_summary

_ROOT = Path(__file__).resolve().parents[1]
MAIN = _ROOT / "main.py"


@dataclasses.dataclass(frozen=True)
class Training:
    """One run of `main.py`.

    Attributes:
        workdir: its folder.
        arguments: the config file and the changed fields, as `main.py` takes them.
        config: what these come to, as `main.py` writes it: `resolved`.
        metrics: which scores its summary has in the end.
    """

    workdir: Path
    arguments: tuple[str, ...]
    config: Mapping[str, Any]
    metrics: tuple[str, ...]

    @classmethod
    def of(
        cls, workdir: Path, config: str, fields: Sequence[str], metrics: tuple[str, ...]
    ) -> "Training":
        """With the config resolved as its file (below the repository's root) is now."""
        path = _ROOT / config
        return cls(workdir, (f"--config={path}", *fields), resolved(path, fields), metrics)

    @property
    def finished(self) -> bool:
        """Whether the folder has the scores of the last step; those of an earlier one do not count."""
        summary = read_summary(self.workdir / "summary.json")
        return summary.get("step") == self.config["steps"] and summary.keys() >= set(self.metrics)

    def check(self) -> None:
        """Raises a `UserError` if the folder has a run of another config; it names the first field."""
        path = self.workdir / "config.json"
        try:
            theirs = _flat(json.loads(path.read_text()))
        except FileNotFoundError as error:
            if not (self.workdir / "summary.json").exists():
                return
            raise UserError(
                f"{self.workdir}: scores without config.json; move the folder away"
            ) from error
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path}: {error}; move the folder {self.workdir} away") from error
        ours = _flat(self.config)
        for name in (*ours, *theirs):
            there, here = _told(theirs, name), _told(ours, name)
            if there != here:
                raise UserError(
                    f"{self.workdir}: its run has {there}, this one {here}; move the folder away or "
                    "choose another --output_dir"
                )


def resolved(config: Path, fields: Sequence[str]) -> dict[str, Any]:
    """The config that `main.py` makes of its arguments, as it writes it into `config.json`.

    Args:
        config: file with `get_config`.
        fields: overrides such as `--config.steps=3`.
    """
    values = flags.FlagValues()
    command = [str(MAIN), *fields]
    made = runpy.run_path(str(config))["get_config"]()
    config_flags.DEFINE_config_dict("config", made, flag_values=values, sys_argv=command)
    values(command)
    return json.loads(values.config.to_json())


def train_all(trainings: Iterable[Training], jobs: int) -> None:
    """Trains what is not finished, `jobs` at a time, each on its share of the cores.

    After one that fails, those that run go on to their end and none begins. Whatever else ends the
    call (Ctrl-C, say) stops all of them first: `main.py` saves on SIGTERM. With several jobs what a
    training prints is appended to `{workdir}.log`.

    Raises:
        UserError: folders have other runs (nothing was started then), or trainings have failed; all
            are told.
    """
    trainings = list(trainings)
    for training in trainings:
        training.check()
    crew = _Crew([one for one in trainings if not one.finished], logged=jobs > 1)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        try:
            for done in [pool.submit(crew.work, share) for share in _shares(jobs)]:
                done.result()
        except BaseException:
            crew.stop()
            raise
    if crew.failures:
        raise UserError("; ".join(crew.failures))


class _Crew:
    """Threads that each wait for one training after the other, and what they share.

    A signal's exception is raised in the main thread, never here: a child that has been started is
    known to `stop`.
    """

    def __init__(self, todo: Iterable[Training], *, logged: bool) -> None:
        self.failures: list[str] = []
        self._todo = collections.deque(todo)
        self._logged = logged
        self._children: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def work(self, cores: Sequence[int]) -> None:
        """Trains until nothing is left to do, on these cores (any, if there are none)."""
        if cores:
            # Of this thread, and so of what it starts.
            os.sched_setaffinity(0, cores)
        while True:
            with self._lock:
                if not self._todo:
                    return
                training = self._todo.popleft()
            try:
                self._train(training)
            except (UserError, OSError) as error:
                with self._lock:
                    self._todo.clear()
                    self.failures.append(str(error))
            except BaseException:
                with self._lock:
                    self._todo.clear()
                raise

    def stop(self) -> None:
        """Lets none begin, and asks those that run to save and leave."""
        with self._lock:
            self._stopped = True
            for child in self._children:
                child.terminate()
            if self._children:
                print(f"waiting for {len(self._children)} to save and leave", file=sys.stderr)

    def _train(self, training: Training) -> None:
        workdir = training.workdir
        log = workdir.with_name(f"{workdir.name}.log") if self._logged else None
        child = self._start(training, log)
        if child is None:
            return
        code = child.wait()
        with self._lock:
            self._children.remove(child)
            if self._stopped:
                return
        if code:
            raise UserError(
                f"{workdir}: the run ended with exit code {code}, see {log or 'what it says above'}"
            )
        # Its config file may have been edited since the first check.
        training.check()
        if not training.finished:
            raise UserError(f"{workdir}: stopped before its end; the same command goes on")

    def _start(self, training: Training, log: Path | None) -> subprocess.Popen[bytes] | None:
        command = [
            *(sys.executable, str(MAIN)),
            *(f"--workdir={training.workdir}", *training.arguments),
        ]
        with self._lock:
            if self._stopped:
                return None
            suffix = f" >> {log}" if log else ""
            print(f"{training.workdir}: {' '.join(command[1:])}{suffix}", flush=True)
            if log is None:
                child = subprocess.Popen(command)
            else:
                log.parent.mkdir(parents=True, exist_ok=True)
                with log.open("ab") as told:
                    child = subprocess.Popen(command, stdout=told, stderr=told)
            self._children.add(child)
            return child


def _shares(jobs: int) -> list[list[int]]:
    """The cores of each job; none where there is but one, or where a process cannot choose."""
    if jobs == 1 or not hasattr(os, "sched_setaffinity"):
        return [[] for _ in range(jobs)]
    cores = sorted(os.sched_getaffinity(0))
    return [cores[job::jobs] or cores for job in range(jobs)]


def _told(fields: Mapping[str, Any], name: str) -> str:
    return f"config.{name}={fields[name]!r}" if name in fields else f"no config.{name}"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        path = prefix + name
        flat |= _flat(value, f"{path}.") if isinstance(value, dict) and value else {path: value}
    return flat
