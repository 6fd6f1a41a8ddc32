"""What holds for any `main.py`: here one that trains nothing and does as a plan beside it says."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from refseg_jax.cli import signals
from refseg_jax.errors import UserError
from tests.tools.planned_runs import PlannedRuns
from tools import trainings
from tools.trainings import Training, resolved, train_all

METRICS = ("mIoU",)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlannedRuns:
    return PlannedRuns(tmp_path, monkeypatch)


def _training(runs: PlannedRuns, name: str, **config: Any) -> Training:
    """Of a name, planned: `main.py` would write this config and these scores."""
    config = {"seed": 0, "steps": 3, "data": {"data_dir": "data"}} | config
    runs.plan(name, config, {"mIoU": 0.5, "step": config["steps"]})
    return Training(runs.folder / name, ("--config=x", "--config.seed=0"), config, METRICS)


def test_the_config_is_the_one_that_main_reads():
    root = Path(trainings.__file__).parents[1]
    path = root / "configs" / "scenes_rela.py"
    fields = (
        "--config.data.granularities=('object',)",
        "--config.optim.lr=1e-3",
        "--config.eval.dump=",
    )
    code = "import main, sys; main.experiment_flags.parse(sys.argv); print(main.FLAGS.config.to_json())"
    told = subprocess.run(
        [sys.executable, "-c", code, "--workdir=w", f"--config={path}", *fields],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    config = resolved(path, fields)
    assert config == json.loads(told.stdout)
    assert config["data"]["granularities"] == ["object"]
    assert (config["optim"]["lr"], config["eval"]["dump"]) == (1e-3, "")


@pytest.mark.parametrize("jobs", [1, 2])
def test_finished_runs_are_kept_and_missing_ones_are_started(runs: PlannedRuns, jobs: int):
    a, b, c = (_training(runs, name) for name in "abc")
    runs.write("b")
    train_all([a, b, c], jobs)
    assert sorted(runs.started) == ["a", "c"]
    assert all(one.finished for one in (a, b, c))
    train_all([a, b, c], jobs)
    assert len(runs.started) == 2


def test_scores_of_an_earlier_step_do_not_finish_a_run(runs: PlannedRuns):
    """`--mode=eval` writes all of them for a workdir that is not through."""
    a = _training(runs, "a")
    runs.write("a", summary={"mIoU": 0.4, "step": 2})
    train_all([a], 1)
    assert runs.started == ["a"]
    assert a.finished


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"steps": 4}, "its run has config.steps=4, this one config.steps=3"),
        (
            {"data": {"data_dir": "other"}},
            "its run has config.data.data_dir='other', this one config.data.data_dir='data'",
        ),
        ({"lr": 0.1}, "its run has config.lr=0.1, this one no config.lr"),
        ({"data": {}}, "its run has no config.data.data_dir, this one config.data.data_dir='data'"),
    ],
)
@pytest.mark.parametrize("summary", [{"mIoU": 0.5, "step": 3}, None])
def test_a_folder_with_a_run_of_another_config_is_an_error_before_any_start(
    runs: PlannedRuns, config: dict[str, Any], named: str, summary: dict[str, Any] | None
):
    first, second = _training(runs, "a"), _training(runs, "b")
    runs.write("b", config={**second.config, **config}, summary=summary)
    with pytest.raises(UserError) as told:
        train_all([first, second], 1)
    assert str(told.value).startswith(f"{runs.folder / 'b'}: {named}; move the folder away")
    assert runs.started == []


@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_a_config_that_is_none_is_one_line(runs: PlannedRuns, text: str):
    a = _training(runs, "a")
    runs.write("a")
    (a.workdir / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"a/config\.json: .*; move the folder"):
        train_all([a], 1)
    (a.workdir / "config.json").unlink()
    with pytest.raises(UserError, match=r"a: scores without config\.json; move the folder"):
        train_all([a], 1)


def test_a_recipe_that_is_edited_meanwhile_is_not_taken_for_the_one_of_the_start(
    runs: PlannedRuns,
):
    a, b = _training(runs, "a"), _training(runs, "b")
    runs.plan("a", {**a.config, "lr": 0.1}, {"mIoU": 0.5, "step": 3})
    with pytest.raises(UserError, match=r"a: its run has config\.lr=0\.1, this one no config\.lr"):
        train_all([a, b], 1)
    assert runs.started == ["a"]


@pytest.mark.parametrize(
    ("code", "named"),
    [(1, "exit code 1"), (0, "stopped before its end"), (143, "stopped before its end")],
)
def test_a_run_that_leaves_no_scores_is_one_line_and_none_begins(
    runs: PlannedRuns, code: int, named: str
):
    a, b = _training(runs, "a"), _training(runs, "b")
    runs.plan("a", a.config, None, code=code)
    with pytest.raises(UserError, match=f"a: .*{named}"):
        train_all([a, b], 1)
    assert runs.started == ["a"]


def test_all_failures_are_told_each_with_its_log(runs: PlannedRuns):
    names = "abcd"
    todo = [_training(runs, name) for name in names]
    for one in todo:
        runs.plan(one.workdir.name, one.config, None, code=3, together=2)
    (runs.folder / "a.log").write_text("of an earlier call\n")
    with pytest.raises(UserError) as told:
        train_all(todo, 2)
    parts = sorted(str(told.value).split("; "))
    assert parts == [
        f"{runs.folder / n}: the run ended with exit code 3, see {runs.folder / n}.log"
        for n in "ab"
    ]
    assert (runs.folder / "a.log").read_text() == "of an earlier call\na to stdout\na to stderr\n"
    assert (runs.folder / "b.log").read_text() == "b to stdout\nb to stderr\n"
    assert sorted(runs.started) == ["a", "b"]


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(
    "scores", [None, {"mIoU": 0.5, "step": 3}], ids=["saves", "ends just then"]
)
def test_a_signal_to_the_command_alone_stops_what_runs_and_nothing_begins(
    runs: PlannedRuns,
    number: int,
    error: type[BaseException],
    jobs: int,
    scores: dict[str, float] | None,
):
    todo = [_training(runs, name) for name in "abcde"]
    for one in todo:
        runs.plan(one.workdir.name, one.config, scores, wait=True)
    with runs.signalled(number, children=jobs), signals.unwound(), pytest.raises(error):
        train_all(todo, jobs)
    assert sorted(runs.started) == list("abcde"[:jobs])
    for name in runs.started:
        assert (runs.folder / name / "saved").exists(), "SIGTERM lets main.py save"
    assert not runs.alive


def _cores(runs: PlannedRuns) -> list[set[int]]:
    return [set(one) for one in runs.cores]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process cannot choose cores")
def test_jobs_share_the_cores(runs: PlannedRuns):
    mine = os.sched_getaffinity(0)
    train_all([_training(runs, name) for name in "abc"], 2)
    assert os.sched_getaffinity(0) == mine
    assert all(share <= mine for share in _cores(runs))
    if len(mine) > 1:
        assert all(share < mine for share in _cores(runs))
    runs.forget()
    train_all([_training(runs, "d")], 1)
    assert _cores(runs) == [mine]


@pytest.mark.parametrize("jobs", [1, 2])
def test_where_a_process_cannot_choose_its_cores_it_trains_on_all(
    runs: PlannedRuns, monkeypatch: pytest.MonkeyPatch, jobs: int
):
    for name in ("sched_getaffinity", "sched_setaffinity"):
        monkeypatch.delattr(os, name, raising=False)
    todo: Sequence[Training] = [_training(runs, name) for name in "ab"]
    train_all(todo, jobs)
    assert all(one.finished for one in todo)
