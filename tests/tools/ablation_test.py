"""The table of the ablation; that its runs train is `main_test`'s matter."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tools import ablation
from tools.ablation import Cell, markdown


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
    cells = {
        "both": {m: Cell(0.60, 0.01) for m in ablation.METRICS},
        "none": {m: Cell(0.50, 0.01) for m in ablation.METRICS},
    }
    cells["none"]["part/mIoU"] = Cell(0.59, 0.01)
    text = markdown(cells, steps=400, seeds=(0, 1, 2))
    header, _, both, none = [line for line in text.splitlines() if line.startswith("|")]
    assert header.split("|")[2:4] == [" object/mIoU ", " part/mIoU "]
    assert both.split("|")[2] == " 60.00 ± 1.00 "
    assert none.split("|")[2] == " 50.00 ± 1.00 (-10.00) "
    assert none.split("|")[3] == " 59.00 ± 1.00 (-1.00, unresolved) "
    assert "400 steps a run, seeds 0, 1, 2" in text


class Runs:
    """Instead of the command's own runs: these write what a training would have."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[str] = []
        self.code = 0
        self.finished = True

    def __call__(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        fields = dict(one.removeprefix("--").split("=", 1) for one in command if "=" in one)
        name = Path(fields["workdir"]).name
        self.started.append(name)
        if self.finished and not self.code:
            self.write(name, 0.5, int(fields["config.seed"]), int(fields["config.steps"]))
        return subprocess.CompletedProcess(command, self.code)

    def write(self, name: str, score: float, seed: int, steps: int = 300) -> None:
        config: dict[str, Any] = {
            "seed": seed,
            "steps": steps,
            "model": {
                "low_tokens": 0 if name.startswith(("high", "none")) else 8,
                "high_tokens": 0 if name.startswith(("low", "none")) else 8,
            },
            "loop": {"eval_every": 0},
            "eval": {"oracle": "", "dump": "", "pictures": 0},
            "evals": {"val": {"when": "never"}, "shuffled": {"when": "never"}},
        }
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps(config))
        (place / "summary.json").write_text(json.dumps(dict.fromkeys(ablation.METRICS, score)))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    found = Runs(tmp_path)
    monkeypatch.setattr("subprocess.run", found)
    return found


def _main(runs: Runs, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    table = f"--table={runs.folder / 'table.md'}"
    monkeypatch.setattr("sys.argv", ["ablation", f"--output_dir={runs.folder}", table, *more])
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
