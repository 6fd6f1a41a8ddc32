"""The table of the ablation; that its runs train is `main_test`'s matter."""

import dataclasses
import json
import os
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tools import ablation
from tools.ablation import Cell, markdown
from tools.studies import GROUP_TOKENS, RELA, STUDIES, Row, Study, Table


def test_a_cell_is_the_mean_and_its_standard_error():
    cell = Cell.of([0.5, 0.6, 0.7])
    assert cell.mean == pytest.approx(0.6)
    assert cell.error == pytest.approx(0.1 / 3**0.5)
    with pytest.raises(ValueError, match="needs two scores or more, there are 1"):
        Cell.of([0.5])


def test_a_difference_counts_from_two_standard_errors_on():
    base = Cell(0.60, 0.03)
    assert Cell(0.71, 0.04).resolved_from(base), "2 * hypot(0.03, 0.04) is 0.1"
    assert not Cell(0.69, 0.04).resolved_from(base)
    assert Cell(0.49, 0.04).resolved_from(base)


def test_the_table_calls_small_differences_unresolved():
    metrics = GROUP_TOKENS.metrics
    both = {m: Cell(0.60, 0.01) for m in metrics}
    none = {m: Cell(0.50, 0.01) for m in metrics} | {"part/mIoU": Cell(0.59, 0.01)}
    table = Table("group tokens", (Row("both", "both"), Row("none", "none")))
    study = dataclasses.replace(GROUP_TOKENS, tables=(table,))
    text = markdown(study, [[both, none]], seeds=(0, 1, 2), steps=400)
    header, _, first, second = [line for line in text.splitlines() if line.startswith("|")]
    assert header.split("|")[2:4] == [" object/mIoU ", " part/mIoU "]
    assert first.split("|")[2] == " 60.00 ± 1.00 "
    assert second.split("|")[2] == " 50.00 ± 1.00 (-10.00) "
    assert second.split("|")[3] == " 59.00 ± 1.00 (-1.00, unresolved) "
    assert "400 steps a run, seeds 0, 1, 2" in text
    assert "the difference to `both`" in text


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_studies_change_fields_that_there_are_and_tell_of_all_that_they_train(study: Study):
    for variant in study.variants.values():
        path = Path(ablation.__file__).parents[1] / (variant.config or study.config)
        config = runpy.run_path(str(path))["get_config"]()
        for override in (*study.fields, *variant.overrides):
            *folders, field = override.removeprefix("--config.").partition("=")[0].split(".")
            place = config
            for folder in folders:
                place = place[folder]
            assert field in place, override
    told = {row.variant for table in study.tables for row in table.rows}
    assert told == set(study.variants)


class Runs:
    """Instead of the command's own runs: these write what a training would have."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[str] = []
        self.code = 0
        self.finished = True

    def __call__(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        fields = dict(one.removeprefix("--").split("=", 1) for one in command if "=" in one)
        folder = Path(fields.pop("workdir"))
        self.started.append(folder.name)
        if self.finished and not self.code:
            self._write(folder.name, fields, 0.5)
        return subprocess.CompletedProcess(command, self.code)

    def write(self, name: str, score: float, seed: int, steps: int = 300) -> None:
        variant = GROUP_TOKENS.variants[name.rpartition("-")[0].replace("_", " ")]
        fields = [one.removeprefix("--") for one in (*GROUP_TOKENS.fields, *variant.overrides)]
        given = dict(one.split("=", 1) for one in fields)
        given |= {"config.seed": str(seed), "config.steps": str(steps)}
        # As `main.py` writes it, whether a field was given or not.
        model = {"config.model.low_tokens": "8", "config.model.high_tokens": "8"}
        self._write(name, model | given, score)

    def _write(self, name: str, fields: dict[str, str], score: float) -> None:
        config: dict[str, Any] = {}
        for field, text in fields.items():
            *folders, last = field.split(".")[1:] or [field]
            place = config
            for folder in folders:
                place = place.setdefault(folder, {})
            place[last] = ablation.value_of(text)
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps(config))
        scores = dict.fromkeys((*GROUP_TOKENS.metrics, *RELA.metrics), score)
        (place / "summary.json").write_text(json.dumps(scores))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    found = Runs(tmp_path)
    monkeypatch.setattr("subprocess.run", found)
    return found


def _main(runs: Runs, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    flags = [f"--output_dir={runs.folder}", f"--page={runs.folder / 'table.md'}", *more]
    monkeypatch.setattr("sys.argv", ["ablation", "--study=group_tokens", *flags])
    return ablation.main()


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_finished_runs_are_kept_and_missing_ones_are_started(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for seed, score in enumerate((0.5, 0.6, 0.7)):
        runs.write(f"both-{seed}", score, seed)
    assert _main(runs, monkeypatch) == 0
    names = ("low_only", "high_only", "none")
    assert sorted(runs.started) == sorted(f"{n}-{seed}" for n in names for seed in range(3))
    table = (runs.folder / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "| both | 60.00 ± 5.77 |" in table
    assert _main(runs, monkeypatch) == 0
    assert len(runs.started) == 9, "what the command has trained itself is kept as well"


@pytest.mark.parametrize(
    ("name", "seed", "steps", "named"),
    [
        ("both-0", 0, 400, "both-0: a run with config.steps=400, not 300"),
        ("both-0", 7, 300, "both-0: a run with config.seed=7, not 0"),
        ("both-0", 0, 300, "low_only-0: a run with config.model.high_tokens=8, not 0"),
    ],
)
def test_a_finished_run_of_something_else_does_not_count(
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    seed: int,
    steps: int,
    named: str,
):
    runs.write(name, 0.5, seed, steps)
    shutil.copytree(runs.folder / name, runs.folder / "low_only-0")
    assert _main(runs, monkeypatch) == 1
    assert named in _error(capsys)
    assert runs.started == []
    assert not (runs.folder / "table.md").exists()


@pytest.mark.parametrize("seeds", [("3",), ("3", "3")])
def test_fewer_than_two_seeds_are_refused_before_any_run(
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seeds: tuple[str, ...],
):
    assert _main(runs, monkeypatch, "--seeds", *seeds) == 1
    assert "two or more" in _error(capsys)
    assert runs.started == []


@pytest.mark.parametrize(("code", "named"), [(1, "exit code 1"), (0, "stopped before its end")])
def test_a_run_that_leaves_no_scores_is_one_line(
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
    named: str,
):
    runs.code, runs.finished = code, False
    assert _main(runs, monkeypatch) == 1
    assert f"both-0: {'the run ended with ' if code else ''}{named}" in _error(capsys)
    assert runs.started == ["both-0"]


def test_jobs_train_everything_once_and_share_the_cores(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
):
    mine = os.sched_getaffinity(0)
    seen: list[set[int]] = []
    train = runs.__call__

    def on_its_cores(command: list[str]) -> subprocess.CompletedProcess[str]:
        seen.append(os.sched_getaffinity(0))
        return train(command)

    monkeypatch.setattr("subprocess.run", on_its_cores)
    assert _main(runs, monkeypatch, "--jobs=2") == 0
    assert sorted(runs.started) == sorted(
        f"{name.replace(' ', '_')}-{seed}" for name in GROUP_TOKENS.variants for seed in range(3)
    )
    assert os.sched_getaffinity(0) == mine
    if len(mine) > 1:
        assert all(share < mine for share in seen)


def test_a_run_that_fails_lets_none_begin(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    runs.code = 1
    assert _main(runs, monkeypatch, "--jobs=2") == 1
    assert len(runs.started) <= 2
