"""Where the wall time of a run goes, over all its starts."""

import contextlib
import dataclasses
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging

from refseg_jax.reporting.writers import format_duration

#: What time is spent on -> how the line at the end calls it.
KINDS = {
    "steps": "steps",
    "data": "waiting for data",
    "compilation": "compilation",
    "evaluation": "evaluation",
    "saving": "saving",
    "start_up": "start-up",
    "lost": "lost between starts",
}
#: Names of `Ledger.summary`.
NAMES = ("goodput/seconds", "goodput/starts", *(f"goodput/{kind}" for kind in KINDS))

_COMPILED = "/jax/core/compile/backend_compile_duration"
#: Records in the file: the first one, and the newest.
_KEPT = 16


@dataclasses.dataclass(frozen=True)
class Record:
    """What was spent until a state was saved.

    Attributes:
        step: number of updates that the state has seen.
        time: when it was saved, in seconds since 1970.
        seconds: kind of `KINDS` -> seconds.
        finished: whether nothing was left to do. The time until a later start does not count then.
    """

    step: int
    time: float
    seconds: Mapping[str, float]
    finished: bool = False


class Ledger:
    """Books each second of a run under one kind of `KINDS`.

    - `start_up`: from the start of the process to the first batch: imports, data, parameters or the
      checkpoint.
    - `compilation`: of the step, with tracing. As a context, the ledger also takes out of every other
      kind what XLA compiles.
    - `data`: waiting for batches.
    - `steps`: all that is nothing else, so mostly the devices' work.
    - `evaluation`, `saving`: until they let the loop go on.
    - `lost`: from a save to the start that resumes from it: steps that are done again, and time in
      which no process runs. The time after a run that had nothing left to do is not its own.

    The file has a record for each of the newest saves, and is replaced as a whole. So a process that is
    killed loses what was booked since its last save, and the next start books that time as lost.
    """

    def __init__(self, path: Path | None = None, *, began: float | None = None) -> None:
        """Starts to book, under `start_up`.

        Args:
            path: the file; `None` keeps everything in memory, for processes that write nothing.
            began: when the process began, in seconds since 1970; now by default.
        """
        self._path = path
        self._began = time.time() if began is None else began
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._seconds["start_up"] = max(time.time() - self._began, 0.0)
        self._kind, self._since = "start_up", time.monotonic()
        self._records: list[Record] = []
        self._starts = 0
        self._thread = threading.get_ident()

    @classmethod
    def of_process(cls, workdir: Path) -> "Ledger":
        """Books since this process began, in `goodput.json`, which the first process writes."""
        path = workdir / "goodput.json" if jax.process_index() == 0 else None
        return cls(path, began=_process_began())

    def __enter__(self) -> "Ledger":
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._note)

    def begin(self, step: int, *, idle: bool = False) -> None:
        """Goes on from what earlier starts have booked, and books under `steps` from now on.

        Args:
            step: number of updates that the state has seen from which the run starts or resumes.
            idle: whether no update is left to do. If the run had finished before, nothing is booked.
        """
        self._turn_to("steps")
        starts, records = self._read()
        if idle and records and records[-1].finished:
            return
        kept = [record for record in records if record.step <= step] or records[:1]
        if kept:
            base = kept[-1]
            for kind, seconds in base.seconds.items():
                self._seconds[kind] += seconds
            if not base.finished:
                self._seconds["lost"] += max(self._began - base.time, 0.0)
        self._starts = starts + 1
        self._records = kept or [Record(0, self._began, {})]
        self._write()

    @contextlib.contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """The block's time is of this kind; blocks may lie in each other, and the innermost counts."""
        before = self._kind
        self._turn_to(kind)
        try:
            yield
        finally:
            self._turn_to(before)

    def record(self, step: int, *, finished: bool = False) -> None:
        """Writes what was booked so far, for the starts that resume from this step.

        Args:
            step: number of updates of the state that was saved.
            finished: whether nothing is left to do.
        """
        if not self._starts:
            return
        self._turn_to(self._kind)
        self._records = [record for record in self._records if record.step < step]
        self._records.append(Record(step, time.time(), dict(self._seconds), finished))
        if len(self._records) > _KEPT:
            del self._records[1]
        self._write()

    def summary(self) -> dict[str, float]:
        """The values of `NAMES`: seconds and starts of the run, and the share of each kind in [0, 1].

        `{}` if the run had nothing left to do.
        """
        if not self._starts:
            return {}
        self._turn_to(self._kind)
        total = sum(self._seconds.values())
        shares = {kind: seconds / max(total, 1e-9) for kind, seconds in self._seconds.items()}
        told = {f"goodput/{kind}": share for kind, share in shares.items()}
        return {"goodput/seconds": total, "goodput/starts": float(self._starts), **told}

    def line(self) -> str:
        """The summary as a line for people; `""` if it is empty."""
        told = self.summary()
        if not told:
            return ""
        starts = round(told["goodput/starts"])
        shares = [f"{words} {100 * told[f'goodput/{kind}']:.1f} %" for kind, words in KINDS.items()]
        return (
            f"wall time {format_duration(told['goodput/seconds'])}, {starts} "
            f"start{'s' if starts > 1 else ''}: {', '.join(shares)}"
        )

    def _turn_to(self, kind: str) -> None:
        now = time.monotonic()
        self._seconds[self._kind] += now - self._since
        self._kind, self._since = kind, now

    def _note(self, event: str, duration_secs: float, **details: Any) -> None:
        """JAX tells of a compilation that has ended."""
        del details
        if event == _COMPILED and threading.get_ident() == self._thread:
            self._turn_to(self._kind)
            self._seconds[self._kind] -= duration_secs
            self._seconds["compilation"] += duration_secs

    def _read(self) -> tuple[int, list[Record]]:
        """Earlier starts, and the records of the file; nothing if it is not there or unreadable."""
        if self._path is None or not self._path.is_file():
            return 0, []
        try:
            stored = json.loads(self._path.read_bytes())
            records = [Record(**record) for record in stored["records"]]
            for record in records:
                if record.seconds.keys() - KINDS.keys():
                    raise ValueError(f"unknown kinds {sorted(record.seconds)}")
                float(record.time + sum(record.seconds.values()))
            return int(stored["starts"]), sorted(records, key=lambda record: int(record.step))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            logging.warning("%s: not a run's times, counted anew (%s)", self._path, error)
            return 0, []

    def _write(self) -> None:
        if self._path is None:
            return
        records = [dataclasses.asdict(record) for record in self._records]
        partial = self._path.with_name(f".{self._path.name}.partial")
        try:
            partial.write_text(json.dumps({"starts": self._starts, "records": records}) + "\n")
            partial.replace(self._path)
        except OSError as error:
            # A full disk is told by what cannot be done without.
            logging.warning("%s: cannot be written (%s)", self._path, error.strerror)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def _process_began() -> float:
    """When this process began, in seconds since 1970; now, where the system does not tell."""
    now = time.time()
    try:
        # The 22nd field is the time since boot, in ticks; the second one may hold spaces.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        age = since_boot - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return now
    return now - max(age, 0.0)
