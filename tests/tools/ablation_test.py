"""The table of the ablation; that its runs train is `main_test`'s matter."""

import json
from pathlib import Path

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
    header, _, both, none = text.splitlines()[:4]
    assert header.split("|")[2:4] == [" object/mIoU ", " part/mIoU "]
    assert both.split("|")[2] == " 60.00 ± 1.00 "
    assert none.split("|")[2] == " 50.00 ± 1.00 (-10.00) "
    assert none.split("|")[3] == " 59.00 ± 1.00 (-1.00, unresolved) "
    assert "400 steps a run, seeds 0, 1, 2" in text


def test_finished_runs_are_kept_and_missing_ones_are_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The command's own runs are replaced by ones that write what a training would have."""
    started = []

    def train(command: list[str], check: bool) -> None:
        assert check
        (place,) = [Path(c.partition("=")[2]) for c in command if c.startswith("--workdir=")]
        started.append(place.name)
        write(place, 0.5)

    def write(place: Path, score: float) -> None:
        place.mkdir(parents=True, exist_ok=True)
        (place / "summary.json").write_text(json.dumps(dict.fromkeys(ablation.METRICS, score)))

    monkeypatch.setattr("subprocess.run", train)
    monkeypatch.setattr(
        "sys.argv", ["ablation", f"--output_dir={tmp_path}", f"--table={tmp_path / 'table.md'}"]
    )
    for seed, score in enumerate((0.5, 0.6, 0.7)):
        write(tmp_path / f"both-{seed}", score)
    assert ablation.main() == 0
    names = ("low_only", "high_only", "none")
    assert sorted(started) == sorted(f"{name}-{seed}" for name in names for seed in range(3))
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "| both | 60.00 ± 5.77 |" in table
