"""What a person sees of a run of main.py: its speed, where the time went, a trace, what was compiled."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from refseg_jax.training.goodput import KINDS
from tests.main_test import STEPS, Place

#: Starts main.py, and tells how often JAX asked its cache, and how often it found what it asked for.
COUNTED = """
import json, runpy, sys, jax
counts = {"compile_requests_use_cache": 0, "cache_hits": 0}
def note(event, **details):
    name = event.rpartition("/")[2]
    counts[name] = counts.get(name, 0) + 1
jax.monitoring.register_event_listener(note)
sys.argv = sys.argv[1:]
try:
    runpy.run_path("main.py", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("counted:", json.dumps(counts))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("watch"))


def _run(place: Place, *more: str) -> subprocess.CompletedProcess[str]:
    done = place.run("-c", COUNTED, *place.command(*more))
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def first(place: Place) -> subprocess.CompletedProcess[str]:
    return _run(place, "--config.loop.profile_steps=(2, 3)")


def _counts(done: subprocess.CompletedProcess[str]) -> tuple[int, int]:
    (line,) = [one for one in done.stdout.splitlines() if one.startswith("counted: ")]
    counts = json.loads(line.removeprefix("counted: "))
    return counts["compile_requests_use_cache"], counts["cache_hits"]


@pytest.mark.usefixtures("first")
def test_the_summary_tells_where_the_time_went(place: Place) -> None:
    summary = place.summary()
    shares = {kind: summary[f"goodput/{kind}"] for kind in KINDS}
    assert sum(shares.values()) == pytest.approx(1)
    assert [kind for kind, share in shares.items() if not share > 0] == ["lost"]
    assert summary["goodput/starts"] == 1
    assert summary["goodput/seconds"] > summary["train_seconds"] > 0
    assert "peak_share" not in summary, "the peak of a CPU is not known"
    (*_, last) = json.loads((place.workdir / "goodput.json").read_text())["records"]
    assert (last["step"], last["finished"]) == (STEPS, True)


def test_the_last_line_tells_it_too(first: subprocess.CompletedProcess[str]) -> None:
    (line,) = [one for one in first.stdout.splitlines() if one.startswith("wall time ")]
    share = r"[\d.]+ %"
    assert re.fullmatch(
        rf"wall time [\d:]+, 1 start: steps {share}, .*lost between starts 0.0 %", line
    )


@pytest.mark.usefixtures("first")
def test_the_steps_that_were_asked_for_are_traced(place: Place) -> None:
    (trace,) = (place.workdir / "profile").glob("plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 0


def test_a_second_start_compiles_nothing(
    place: Place, first: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    asked, found = _counts(first)
    # A run evaluates with the same functions several times.
    assert found < asked
    asked, found = _counts(_run(place, f"--workdir={tmp_path}"))
    assert asked == found > 0
