"""Runs that are stopped and go on, or are another run, or have several datasets."""

import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from input_pipeline.mixtures import Member, Mixture, open_mixture
from refseg_jax.checkpoints import manifest
from refseg_jax.checkpoints.folder import read_record
from refseg_jax.checkpoints.params import load_params
from refseg_jax.errors import UserError
from refseg_jax.training.state import Trainer
from tests.refseg_jax.training.loop_runs import (
    BATCH,
    Noting,
    build_sound,
    lines_of,
    saved_steps,
    train,
)
from tests.refseg_jax.training.tiny_run import data_config

sound = pytest.fixture(scope="module")(build_sound)


@pytest.mark.parametrize("hangs", [False, True])
def test_preempted_run_saves_and_resumes_as_if_nothing_had_happened(
    sound: Path, tmp_path: Path, hangs: bool
) -> None:
    """If the pipeline hangs when SIGTERM comes, the batch that was awaited comes first again."""
    whole, told, _ = train(tmp_path / "whole", sound, 7, log_batches=True)
    assert (told["steps"], told["preempted"]) == (7, 0)
    _, told, _ = train(
        tmp_path / "cut", sound, 7, signal_at=3 + hangs, hangs=hangs, log_batches=True
    )
    assert (told["steps"], told["preempted"]) == (3, 1)
    assert saved_steps(tmp_path / "cut") == {3}
    resumed, told, _ = train(tmp_path / "cut", sound, 7, log_batches=True)
    assert (told["steps"], told["preempted"]) == (4, 0)
    assert int(resumed.step) == 7
    for one, other in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)
    batches = [lines_of(tmp_path / name / "batches-0.jsonl") for name in ("whole", "cut")]
    assert batches[0] == batches[1]
    assert len(batches[0]) == 7
    told_of = [lines_of(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut")]
    assert [line["step"] for line in told_of[1]] == list(range(1, 8))
    assert [line["loss"] for line in told_of[1]] == [line["loss"] for line in told_of[0]]


def test_preempted_run_saves_before_an_evaluation_that_is_due(sound: Path, tmp_path: Path) -> None:
    """The machine may be gone before the evaluation ends."""
    noting = Noting()
    train(tmp_path, sound, 7, signal_at=3, eval_every=3, evaluations=(noting,))
    assert noting.calls == []
    assert saved_steps(tmp_path) == {3}


@pytest.mark.parametrize("at", [2, 4])
def test_a_notice_during_an_evaluation_is_followed_when_that_has_ended(
    sound: Path, tmp_path: Path, at: int
) -> None:
    leaving = Noting(at)
    told = train(tmp_path, sound, 4, eval_every=2, evaluations=(leaving,)).speed
    assert (told["steps"], told["preempted"]) == (at, 1)
    assert [step for step, _ in leaving.calls] == list(range(2, at + 1, 2))
    assert saved_steps(tmp_path) == set(range(2, at + 1, 2))
    # It is not made twice.
    again = Noting()
    train(tmp_path, sound, 4, eval_every=2, evaluations=(again,))
    assert [step for step, _ in again.calls] == list(range(at + 2, 5, 2))


def test_sigterm_before_the_first_batch_saves_nothing(sound: Path, tmp_path: Path) -> None:
    told = train(tmp_path, sound, 4, signal_at=1, hangs=True).speed
    assert (told["steps"], told["preempted"]) == (0, 1)
    assert not (tmp_path / "checkpoints").exists()


def test_sigterm_in_an_evaluation_that_hangs_saves_and_evaluates_again(
    sound: Path, tmp_path: Path
) -> None:
    told = train(tmp_path, sound, 4, eval_every=2, evaluations=(Noting(2, hangs=True),)).speed
    assert (told["steps"], told["preempted"]) == (2, 1)
    assert saved_steps(tmp_path) == {2}
    again = Noting()
    scores = train(tmp_path, sound, 4, eval_every=2, evaluations=(again,)).scores
    assert [step for step, _ in again.calls] == [2, 4]
    assert scores == {"val/mIoU": 0.04}


@pytest.mark.parametrize("steps", [(2,), (4,), (2, 4), (3,)])
def test_scores_do_not_depend_on_when_a_run_was_preempted(
    sound: Path, tmp_path: Path, steps: tuple[int, ...]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    alone, noting = Noting(falling=True), Noting(falling=True)
    expected = train(whole, sound, 4, eval_every=2, evaluations=(alone,))
    for step, since in zip(steps, (0, *steps), strict=False):
        fields = {"signal_at": step - since, "eval_every": 2, "evaluations": (noting,)}
        assert train(cut, sound, 4, **fields).speed["preempted"]
    assert train(cut, sound, 4, eval_every=2, evaluations=(noting,)).scores == expected.scores
    assert noting.calls == alone.calls
    assert load_params(cut, step="best")[1]["progress"]["step"] == 2
    timings = {"time", "images_per_second", "data_wait_share"}
    told = [
        [
            {name: value for name, value in line.items() if name not in timings}
            for line in lines_of(workdir / "metrics.jsonl")
        ]
        for workdir in (cut, whole)
    ]
    assert told[0] == told[1]
    for step in (2, 4):
        folder = cut / "checkpoints" / str(step)
        assert read_record(folder).metrics == {"val/mIoU": 1 / step}
        assert manifest.check(folder).soundness is manifest.Soundness.SOUND


def test_finished_run_does_nothing_when_it_is_started_again(sound: Path, tmp_path: Path) -> None:
    first = train(tmp_path, sound, 3).state
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again, told, scores = train(tmp_path, sound, 3)
    assert told["steps"] == 0
    assert scores == {}
    np.testing.assert_array_equal(again.params["liked"], first.params["liked"])
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_seconds_of_a_resumed_run_include_those_of_the_earlier_call(
    sound: Path, tmp_path: Path
) -> None:
    train(tmp_path, sound, 2)
    path = tmp_path / "checkpoints" / "2"
    _, stored = load_params(path)
    spent = stored["progress"]["train_seconds"]
    assert spent > 0
    told = train(tmp_path, sound, 4).speed
    assert told["train_seconds"] > spent
    later = load_params(tmp_path)[1]["progress"]
    assert later["step"] == 4
    assert spent < later["train_seconds"] < told["train_seconds"]


def _config(**changes: Any) -> dict[str, Any]:
    data = {"dataset": "tiny", "num_workers": 0, "flip_probability": 0.0}
    model = {"name": "colour", "sizes": (1, 2), "head": {"width": 8}}
    mixture = {"a": {"weight": 2}, "b": {}}
    return {"seed": 1, "steps": 2, "data": data, "model": model, "mixture": mixture, **changes}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 2}, r"config\.seed=1, now it is 2"),
        ({"data": {"dataset": "other"}}, r"config\.data\.dataset='tiny', now it is 'other'"),
        ({"data": {"num_workers": 2}}, r"config\.data\.num_workers=0, now it is 2"),
        ({"model": {"head": {"width": 9}}}, r"config\.model\.head\.width=8, now it is 9"),
        ({"mixture": {"a": {"weight": 2}}}, r"config\.mixture=\['a', 'b'\], now it is \['a'\]"),
        ({"mixture": {}}, r"config\.mixture=\['a', 'b'\], now it is \[\]"),
        (
            {"mixture": {"a": {"weight": 3}, "b": {}}},
            r"config\.mixture\.a\.weight=2, now it is 3",
        ),
    ],
)
def test_another_run_is_not_resumed(
    sound: Path, trained: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=named) as caught:
        train(trained, sound, 2, config=_config(**changes))
    assert "\n" not in str(caught.value)
    assert str(trained) in str(caught.value)


@pytest.fixture(scope="module")
def trained(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a config."""
    workdir = tmp_path_factory.mktemp("trained")
    train(workdir, sound, 2, config=_config())
    return workdir


def test_more_steps_and_new_fields_resume(sound: Path, trained: Path) -> None:
    model = {"name": "colour", "sizes": [1, 2], "head": {"width": 8, "grown": True}}
    config = _config(steps=3, data={"dataset": "tiny", "flip_probability": 0.5}, model=model)
    assert train(trained, sound, 3, config=config).speed["steps"] == 1


def test_fewer_steps_than_were_done_are_refused_and_nothing_is_lost(
    sound: Path, trained: Path
) -> None:
    told = (trained / "metrics.jsonl").read_bytes()
    with pytest.raises(
        UserError, match=r"trained for \d steps, and 1 are asked for; ask for as many"
    ):
        train(trained, sound, 1, config=_config(steps=1))
    assert (trained / "metrics.jsonl").read_bytes() == told


def _mixture(data_dir: Path) -> Mixture:
    """Two members of one shape, and a third of another, at every fourth step."""
    data = data_config(data_dir, "train")
    wide = dataclasses.replace(data, pairs=2)
    return open_mixture(
        [Member("few", data), Member("many", data, weight=2.0), Member("wide", wide)]
    )


def test_a_mixture_compiles_once_a_shape_and_tells_the_loss_of_each_member(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    compile_step = Trainer.compile_step

    def keep(self: Trainer) -> Any:
        compiled.append(compile_step(self))
        return compiled[-1]

    monkeypatch.setattr(Trainer, "compile_step", keep)
    mixture = _mixture(sound)
    train(tmp_path, sound, 8, mixture=mixture, log_batches=True)
    assert compiled[0]._cache_size() == 2
    names = [h.name for h in itertools.islice(mixture.batches(batch_size=BATCH, seed=1), 8)]
    assert Counter(names) == {"many": 4, "few": 2, "wide": 2}
    lines = lines_of(tmp_path / "metrics.jsonl")
    for name, line in zip(names, lines, strict=True):
        assert {key for key in line if key.endswith("/loss")} == {f"{name}/loss"}
        assert line[f"{name}/loss"] == line["loss"]
    rows = [line["rows"] for line in lines_of(tmp_path / "batches-0.jsonl")]
    assert [{key.split("/")[0] for key, *_ in step} for step in rows] == [{n} for n in names]

    # A line of several steps has the newest of each.
    train(tmp_path / "few", sound, 8, mixture=mixture, log_every=4)
    for line in lines_of(tmp_path / "few" / "metrics.jsonl"):
        newest: dict[str, float] = {}
        for one in lines[line["step"] - 4 : line["step"]]:
            newest |= {key: value for key, value in one.items() if key.endswith("/loss")}
        assert len(newest) == 3
        assert newest.items() <= line.items()


def test_a_mixture_that_is_stopped_goes_on_as_if_it_had_not_been(
    sound: Path, tmp_path: Path
) -> None:
    expected = train(tmp_path / "alone", sound, 6, mixture=_mixture(sound), log_batches=True)
    workdir = tmp_path / "stopped"
    stopped = train(workdir, sound, 6, mixture=_mixture(sound), signal_at=3, log_batches=True)
    assert stopped.speed["preempted"] and stopped.speed["steps"] < 6
    found = train(workdir, sound, 6, mixture=_mixture(sound), log_batches=True)
    np.testing.assert_array_equal(found.state.params["liked"], expected.state.params["liked"])
    name = "batches-0.jsonl"
    assert (workdir / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
