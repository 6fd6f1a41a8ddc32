"""The ledger of a run's wall time, by a clock of the test's own."""

import json
import logging
import types
from pathlib import Path
from typing import Any

import jax
import pytest

from refseg_jax.training import goodput
from refseg_jax.training.goodput import KINDS, NAMES, Ledger


class _Time:
    now = 1000.0


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> _Time:
    ticks = _Time()
    # The two clocks of a machine do not begin at the same moment.
    clocks = types.SimpleNamespace(time=lambda: ticks.now, monotonic=lambda: ticks.now - 77)
    monkeypatch.setattr(goodput, "time", clocks)
    return ticks


def _seconds(ledger: Ledger) -> dict[str, Any]:
    """Kind -> seconds, without those that are 0; they add up to the whole."""
    told = ledger.summary()
    assert told.keys() == set(NAMES)
    total = told["goodput/seconds"]
    found = {kind: told[f"goodput/{kind}"] * total for kind in KINDS}
    assert sum(found.values()) == pytest.approx(total)
    return {kind: pytest.approx(value) for kind, value in found.items() if value > 1e-9}


def _work(ledger: Ledger, time: _Time, seconds: float) -> None:
    """Trains; a tenth of the time goes to waiting for data."""
    with ledger.spending("data"):
        time.now += seconds / 10
    time.now += seconds * 9 / 10


def test_each_second_has_one_kind_and_the_innermost_counts(time: _Time) -> None:
    ledger = Ledger(began=990.0)
    time.now += 5
    ledger.begin(0)
    with ledger.spending("compilation"):
        time.now += 20
    _work(ledger, time, 100)
    with ledger.spending("evaluation"):
        time.now += 7
        with ledger.spending("data"):
            time.now += 3
        time.now += 1
    with ledger.spending("saving"):
        time.now += 2
    assert _seconds(ledger) == {
        "start_up": 15,
        "compilation": 20,
        "data": 13,
        "steps": 90,
        "evaluation": 8,
        "saving": 2,
    }
    assert ledger.line() == (
        "wall time 2:28, 1 start: steps 60.8 %, waiting for data 8.8 %, compilation 13.5 %, "
        "evaluation 5.4 %, saving 1.4 %, start-up 10.1 %, lost between starts 0.0 %"
    )


def test_a_block_that_fails_ends_its_kind(time: _Time) -> None:
    ledger = Ledger()
    ledger.begin(0)
    with pytest.raises(ValueError, match="no"), ledger.spending("saving"):
        time.now += 1
        raise ValueError("no")
    time.now += 1
    assert _seconds(ledger) == {"saving": 1, "steps": 1}


def test_what_a_kill_undoes_is_lost_until_the_next_start(time: _Time, tmp_path: Path) -> None:
    path = tmp_path / "goodput.json"
    first = Ledger(path, began=time.now)
    time.now += 10
    first.begin(0)
    _work(first, time, 100)
    first.record(50)
    # Killed 30 seconds later; the next process begins after another 40.
    _work(first, time, 30)
    time.now += 40
    second = Ledger(path, began=time.now)
    time.now += 5
    second.begin(50)
    _work(second, time, 20)
    second.record(60)
    expected = {"start_up": 15, "data": 12, "steps": 108, "lost": 70}
    assert _seconds(second) == expected
    assert second.summary()["goodput/starts"] == 2
    # One that is killed before it saves anything adds its own time to what is lost.
    _work(second, time, 1)
    third = Ledger(path, began=time.now)
    third.begin(60)
    time.now += 500
    fourth = Ledger(path, began=time.now)
    fourth.begin(60)
    assert _seconds(fourth) == {**expected, "lost": 70 + 1 + 500}
    assert fourth.summary()["goodput/starts"] == 4


def test_all_is_lost_before_the_first_save(time: _Time, tmp_path: Path) -> None:
    for start in range(3):
        ledger = Ledger(tmp_path / "goodput.json", began=time.now)
        ledger.begin(0)
        assert _seconds(ledger) == ({"lost": 10 * start} if start else {})
        time.now += 10


def test_an_older_checkpoint_loses_what_came_after_it(time: _Time, tmp_path: Path) -> None:
    path = tmp_path / "goodput.json"
    first = Ledger(path, began=time.now)
    first.begin(0)
    for step in range(10, 310, 10):
        _work(first, time, 100)
        first.record(step)
    assert len(json.loads(path.read_text())["records"]) == 16
    # The newest two are damaged.
    second = Ledger(path, began=time.now)
    second.begin(280)
    assert _seconds(second) == {"data": 280, "steps": 2520, "lost": 200}
    # A killed second start still knows.
    third = Ledger(path, began=time.now + 7)
    third.begin(280)
    assert _seconds(third) == {"data": 280, "steps": 2520, "lost": 207}


def test_time_after_a_finished_run_is_not_its_own(time: _Time, tmp_path: Path) -> None:
    path = tmp_path / "goodput.json"
    first = Ledger(path, began=time.now)
    first.begin(0)
    _work(first, time, 100)
    first.record(50)
    with first.spending("evaluation"):
        time.now += 20
    first.record(50, finished=True)
    stored = path.read_bytes()
    time.now += 10_000
    # The same command again has nothing to do, and tells nothing.
    idle = Ledger(path, began=time.now)
    idle.begin(50, idle=True)
    idle.record(50, finished=True)
    assert (idle.summary(), idle.line()) == ({}, "")
    assert path.read_bytes() == stored
    # With more steps, it goes on.
    more = Ledger(path, began=time.now)
    more.begin(50)
    _work(more, time, 10)
    assert _seconds(more) == {"data": 11, "steps": 99, "evaluation": 20}


def test_a_run_that_was_killed_in_its_last_evaluation_is_not_finished(
    time: _Time, tmp_path: Path
) -> None:
    path = tmp_path / "goodput.json"
    first = Ledger(path, began=time.now)
    first.begin(0)
    _work(first, time, 100)
    first.record(50)
    time.now += 20
    again = Ledger(path, began=time.now)
    again.begin(50, idle=True)
    assert _seconds(again) == {"data": 10, "steps": 90, "lost": 20}


def test_a_clock_that_is_set_back_loses_nothing(time: _Time, tmp_path: Path) -> None:
    path = tmp_path / "goodput.json"
    first = Ledger(path, began=time.now)
    first.begin(0)
    _work(first, time, 10)
    first.record(5)
    second = Ledger(path, began=time.now - 3600)
    second.begin(5)
    assert "lost" not in _seconds(second)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"starts": 1}',
        b'{"starts": 1, "records": [{"step": 1}]}',
        b'{"starts": 1, "records": [{"step": 1, "time": "x", "seconds": {}}]}',
        b'{"starts": 1, "records": [{"step": 1, "time": 1, "seconds": {"tea": 1}}]}',
        b'{"starts": "x", "records": []}',
    ],
)
def test_a_file_that_is_no_ledger_is_told_and_counted_anew(
    time: _Time, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "goodput.json"
    path.write_bytes(content)
    ledger = Ledger(path, began=time.now)
    with caplog.at_level(logging.WARNING, "absl"):
        ledger.begin(5)
    assert f"{path}: not a run's times" in caplog.text
    assert ledger.summary()["goodput/starts"] == 1
    assert json.loads(path.read_text())["starts"] == 1


def test_a_file_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(tmp_path / "gone" / "goodput.json")
    with caplog.at_level(logging.WARNING, "absl"):
        ledger.begin(0)
    assert "cannot be written (No such file or directory)" in caplog.text


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in (1, 0):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        ledger = Ledger.of_process(tmp_path)
        ledger.begin(0)
        assert (tmp_path / "goodput.json").exists() is (index == 0)
        # This process is older than the test, and younger than a day.
        assert 0 < ledger.summary()["goodput/start_up"] < 86400


def test_what_xla_compiles_is_compilation_wherever_it_happens() -> None:
    def spend() -> dict[str, float]:
        ledger = Ledger()
        with ledger:
            ledger.begin(0)
            with ledger.spending("evaluation"):
                jax.jit(lambda x: x * 3 + 1)(jax.numpy.ones(5)).block_until_ready()
        jax.jit(lambda x: x * 5 + 2)(jax.numpy.ones(6)).block_until_ready()
        return ledger.summary()

    told = spend()
    assert told["goodput/compilation"] > 0
    assert told["goodput/evaluation"] > 0
    assert sum(told[f"goodput/{kind}"] for kind in KINDS) == pytest.approx(1)
