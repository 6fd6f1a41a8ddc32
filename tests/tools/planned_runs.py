"""Processes that replace `main.py`: they train nothing, and write planned files."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tools import trainings

#: The program: it records that it was started, and follows its plan.
_MAIN = """
import json, os, signal, sys, time
from pathlib import Path

place = Path(sys.argv[0]).parent
workdir = Path(sys.argv[1].removeprefix("--workdir="))
plan = json.loads((place / "plans" / f"{workdir.name}.json").read_text())
workdir.mkdir(parents=True, exist_ok=True)


def save(number, frame):
    (workdir / "saved").touch()


signal.signal(signal.SIGTERM, save)
cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
with (place / "started").open("a") as told:
    told.write(json.dumps([workdir.name, os.getpid(), cores]) + "\\n")
print(workdir.name, "to stdout", flush=True)
print(workdir.name, "to stderr", file=sys.stderr)
deadline = time.monotonic() + 30
while time.monotonic() < deadline and not (workdir / "saved").exists():
    together = len((place / "started").read_text().splitlines()) >= plan["together"]
    if together and not plan["wait"]:
        break
    time.sleep(0.01)
(workdir / "config.json").write_text(json.dumps(plan["config"]))
if plan["summary"] is not None:
    (workdir / "summary.json").write_text(json.dumps(plan["summary"]))
sys.exit(plan["code"])
"""


class PlannedRuns:
    """Planned runs in a folder, which replace real ones during a test."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = place / "runs"
        self.folder.mkdir()
        self._place = place
        (place / "plans").mkdir()
        (place / "main.py").write_text(_MAIN)
        monkeypatch.setattr(trainings, "MAIN", place / "main.py")

    def plan(
        self,
        name: str,
        config: Mapping[str, Any],
        summary: Mapping[str, Any] | None,
        *,
        code: int = 0,
        wait: bool = False,
        together: int = 1,
    ) -> None:
        """Plans a run.

        Args:
            name: name of its workdir.
            config: content of the `config.json` that it writes.
            summary: content of the `summary.json` that it writes, or `None` for no such file.
            code: its exit code.
            wait: whether it waits for SIGTERM.
            together: number of runs for whose start it waits, itself included.
        """
        plan = {"config": config, "summary": summary, "code": code}
        plan |= {"wait": wait, "together": together}
        (self._place / "plans" / f"{name}.json").write_text(json.dumps(plan))

    def write(self, name: str, **other: Any) -> None:
        """Writes the planned files as an earlier run would; `other` replaces parts of the plan."""
        plan = json.loads((self._place / "plans" / f"{name}.json").read_text()) | other
        workdir = self.folder / name
        workdir.mkdir()
        (workdir / "config.json").write_text(json.dumps(plan["config"]))
        if plan["summary"] is not None:
            (workdir / "summary.json").write_text(json.dumps(plan["summary"]))

    def forget(self) -> None:
        """Forgets which runs were started."""
        (self._place / "started").unlink()

    @property
    def started(self) -> list[str]:
        """Names of the started runs, in the order of their starts."""
        return [name for name, _, _ in self._told()]

    @property
    def alive(self) -> list[str]:
        """Names of the started runs whose process exists, zombies included."""
        return [name for name, process, _ in self._told() if _is_alive(process)]

    @contextlib.contextmanager
    def signalled(self, number: int, *, children: int) -> Iterator[None]:
        """Sends a signal to this process only, as soon as `children` runs were started."""

        def send() -> None:
            deadline = time.monotonic() + 30
            while len(self.started) < children and time.monotonic() < deadline:
                time.sleep(0.01)
            os.kill(os.getpid(), number)

        thread = threading.Thread(target=send)
        thread.start()
        yield
        thread.join()

    @property
    def cores(self) -> list[list[int]]:
        """Cores on which each started run was allowed to run."""
        return [cores for _, _, cores in self._told()]

    def _told(self) -> list[tuple[str, int, list[int]]]:
        path = self._place / "started"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
