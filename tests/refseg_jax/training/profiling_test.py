"""A trace has the steps that were asked for, by name, and nothing else."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import jax
import pytest

from refseg_jax.errors import UserError
from refseg_jax.training.loop import LoopConfig
from refseg_jax.training.profiling import STEP
from tests.refseg_jax.training.loop_runs import build_sound, train

sound = pytest.fixture(scope="module")(build_sound)


def _traced(workdir: Path) -> list[int]:
    """Numbers of the steps in the only trace of a run."""
    (path,) = (workdir / "profile").glob("plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return [int(event["args"]["step_num"]) for event in events if event.get("name") == STEP]


def test_the_steps_that_were_asked_for_are_traced_by_number(sound: Path, tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", sound, 6).state
    traced = train(tmp_path / "traced", sound, 6, profile_steps=(3, 4)).state
    assert _traced(tmp_path / "traced") == [3, 4]
    assert not (tmp_path / "plain" / "profile").exists()
    assert (traced.params["liked"] == plain.params["liked"]).all()


def test_a_run_that_is_stopped_leaves_the_steps_that_it_did_and_the_next_one_does_the_rest(
    sound: Path, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"profile_steps": (2, 5)}
    # SIGTERM comes before the fourth batch, which is still trained on.
    train(tmp_path, sound, 8, signal_at=4, **fields)
    assert _traced(tmp_path) == [2, 3, 4]
    (tmp_path / "profile").rename(tmp_path / "first")
    train(tmp_path, sound, 8, **fields)
    assert _traced(tmp_path) == [5]
    (tmp_path / "profile").rename(tmp_path / "second")
    # All of them are done.
    train(tmp_path, sound, 9, **fields)
    assert not (tmp_path / "profile").exists()


def test_the_first_process_alone_traces(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refseg_jax.training import profiling

    monkeypatch.setattr(profiling.jax, "process_index", lambda: 1)
    profile = profiling.Profile(tmp_path / "profile", (1, 2))
    waits: list[int] = []
    with profile:
        for number in (1, 2, 3):
            with profile.step(number, lambda: waits.append(1)):
                pass
    assert not waits
    assert not (tmp_path / "profile").exists()


def test_a_trace_of_somebody_else_is_left_alone(
    sound: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jax.profiler.start_trace(tmp_path / "other")
    try:
        with caplog.at_level(logging.WARNING, "absl"):
            assert train(tmp_path, sound, 4, profile_steps=(2, 3)).speed["steps"] == 4
    finally:
        jax.profiler.stop_trace()
    assert caplog.text.count("config.loop.profile_steps: nothing is traced") == 1
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize(
    "steps", [(15, 10), (-1, 3), (0, 3), (10,), (1, 2, 3), (1.0, 2.0), (True, 2), ("a", "b")]
)
def test_what_is_no_first_and_last_step_is_one_line(steps: Any) -> None:
    with pytest.raises(
        UserError, match=r"config\.loop\.profile_steps=.*e\.g\. \(10, 15\)"
    ) as caught:
        LoopConfig(profile_steps=steps)
    assert "\n" not in str(caught.value)


def test_steps_beyond_the_training_are_one_line(sound: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"profile_steps=\(4, 9\): the training ends with step 8"):
        train(tmp_path, sound, 8, profile_steps=(4, 9))
    assert not (tmp_path / "checkpoints").exists()
