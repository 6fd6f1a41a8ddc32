"""Rates by a clock of the test's own."""

import types

import pytest

from refseg_jax.training import clock
from refseg_jax.training.clock import Clock


class _Time:
    now = 100.0


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> _Time:
    ticks = _Time()
    monkeypatch.setattr(clock, "time", types.SimpleNamespace(perf_counter=lambda: ticks.now))
    return ticks


def test_pauses_do_not_count_and_waiting_does(time: _Time) -> None:
    watch = Clock()
    for _ in range(4):
        with watch.waiting():
            time.now += 1
        time.now += 2
        watch.count(24)
    with watch.paused("saving"):
        time.now += 1000
    assert watch.rates() == {"images_per_second": 4 * 24 / 12, "data_wait_share": 4 / 12}


def test_the_first_step_does_not_count(time: _Time) -> None:
    watch = Clock()
    with watch.waiting():
        time.now += 50
    watch.count(8)
    watch.start_rates()
    time.now += 2
    watch.count(8)
    assert watch.rates() == {"images_per_second": 4.0, "data_wait_share": 0.0}
    assert watch.summary() == {"train_seconds": 52.0, **watch.rates()}


def test_seconds_of_earlier_calls_count_as_time_but_not_for_the_rates(time: _Time) -> None:
    watch = Clock(earlier=1000.0)
    watch.count(8)
    time.now += 4
    assert watch.elapsed() == 1004.0
    assert watch.summary() == {
        "train_seconds": 1004.0,
        "images_per_second": 2.0,
        "data_wait_share": 0.0,
    }


def test_arithmetic_counts_as_a_share_of_a_peak_that_is_known(time: _Time) -> None:
    watch = Clock(peak=1000.0)
    for flops in (300.0, 500.0):
        time.now += 2
        watch.count(8, flops)
    with watch.paused("evaluation"):
        time.now += 50
    assert watch.rates()["peak_share"] == 800 / 4 / 1000
    watch.start_rates()
    assert watch.summary()["peak_share"] == 0


def test_no_time_at_all_is_no_division_by_zero(time: _Time) -> None:
    assert Clock().rates() == {"images_per_second": 0.0, "data_wait_share": 0.0}
    assert time.now == 100.0
