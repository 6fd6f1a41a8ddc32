"""Runs trainings with `main.py`, several at a time: resumed, kept once finished, and stopped together.

A training is identified by its whole config, which `main.py` writes into the workdir. A run of another
config is never taken for it, even if only the config file was edited in the meantime.
"""

import collections
import concurrent.futures
import dataclasses
import json
import os
import runpy
import signal
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
        workdir: folder of the run.
        arguments: flags of `main.py` for the config file and the changed fields.
        config: the config that results from the arguments, as `resolved` returns it.
        metrics: names of the scores that the summary of the finished run has.
    """

    workdir: Path
    arguments: tuple[str, ...]
    config: Mapping[str, Any]
    metrics: tuple[str, ...]

    @classmethod
    def of(
        cls, workdir: Path, config: str, fields: Sequence[str], metrics: tuple[str, ...]
    ) -> "Training":
        """Makes a training with the present content of its config file.

        Args:
            workdir: folder of the run.
            config: config file, relative to the root of the repository.
            fields: overrides such as `--config.steps=3`.
            metrics: names of the scores that the summary of the finished run has.
        """
        path = _ROOT / config
        return cls(workdir, (f"--config={path}", *fields), resolved(path, fields), metrics)

    @property
    def finished(self) -> bool:
        """Whether the workdir has all scores of the last step."""
        summary = read_summary(self.workdir / "summary.json")
        return summary.get("step") == self.config["steps"] and summary.keys() >= set(self.metrics)

    def check(self) -> None:
        """Checks that the workdir has no run of another config.

        Raises:
            UserError: it has one; the message names the first field that differs.
        """
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
    """Returns the config that `main.py` would write into `config.json`.

    Args:
        config: path of the config file.
        fields: overrides such as `--config.steps=3`.
    """
    values = flags.FlagValues()
    command = [str(MAIN), *fields]
    made = runpy.run_path(str(config))["get_config"]()
    config_flags.DEFINE_config_dict("config", made, flag_values=values, sys_argv=command)
    values(command)
    return json.loads(values.config.to_json())


def train_all(trainings: Iterable[Training], jobs: int) -> None:
    """Runs the trainings that are not finished, `jobs` at a time, each on its share of the cores.

    If a training fails, those that run continue to their end, and no other is started. If another
    exception (e.g. Ctrl-C) ends the call, all running trainings are stopped first; `main.py` saves on
    SIGTERM. With several jobs, the output of a training is appended to `{workdir}.log`.

    Args:
        trainings: the trainings, in the order in which to start them.
        jobs: number of trainings that run at a time.

    Raises:
        UserError: a workdir has another run (then nothing was started), or trainings have failed (the
            message names all of them).
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
    """State of the threads that each run one training after the other.

    Signals raise their exception in the main thread, never in these threads. No exception can therefore
    come between the start of a child and its registration for `stop`.
    """

    def __init__(self, todo: Iterable[Training], *, logged: bool) -> None:
        self.failures: list[str] = []
        self._todo = collections.deque(todo)
        self._logged = logged
        self._children: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def work(self, cores: Sequence[int]) -> None:
        """Runs trainings until none is left, on the given cores (on any, if the list is empty)."""
        if cores:
            # Applies to this thread, and is inherited by the processes that it starts.
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
        """Starts no more trainings, and asks those that run to save and stop."""
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
        if code not in (0, 128 + signal.SIGTERM):
            raise UserError(
                f"{workdir}: the run ended with exit code {code}, see {log or 'what it says above'}"
            )
        # The config file may have been edited since the first check.
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
    """Cores of each job; empty lists for a single job, or if the system cannot bind processes."""
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
