"""The command; how it trains is `trainings_test`'s matter, and that main.py does `main_test`'s."""

import argparse
import json
import signal
from pathlib import Path

import pytest

from tests.tools.planned_runs import PlannedRuns
from tools import ablation
from tools.studies.unires import GROUP_TOKENS
from tools.trainings import Training


class Study(PlannedRuns):
    """Its runs, planned: each would write its own config and the same score everywhere."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(place, monkeypatch)
        self.page = place / "table.md"
        self._monkeypatch = monkeypatch
        for one in self.trainings().values():
            self.score(one, 0.5)

    def trainings(self) -> dict[str, Training]:
        """By the names of their folders."""
        options = argparse.Namespace(
            study="group_tokens",
            data_dir="data",
            output_dir=self.folder,
            steps=300,
            seeds=[0, 1, 2],
        )
        return {one.workdir.name: one for one in ablation.study_trainings(options).values()}

    def score(self, training: Training, score: float) -> None:
        """Plans what a run scores."""
        summary = dict.fromkeys(training.metrics, score) | {"step": 300}
        self.plan(training.workdir.name, training.config, summary)

    def call(self, *more: str) -> int:
        """The command's exit code."""
        flags = [f"--output_dir={self.folder}", f"--page={self.page}", *more]
        self._monkeypatch.setattr("sys.argv", ["ablation", "--study=group_tokens", *flags])
        return ablation.main()


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    return Study(tmp_path, monkeypatch)


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_what_is_missing_is_trained_and_the_page_tells_all(
    study: Study, capfd: pytest.CaptureFixture[str]
):
    trainings = study.trainings()
    for seed, score in enumerate((0.5, 0.6, 0.7)):
        study.score(trainings[f"both-{seed}"], score)
        study.write(f"both-{seed}")
    assert study.call("--jobs=2") == 0
    names = ("low_only", "high_only", "none")
    assert sorted(study.started) == sorted(f"{n}-{seed}" for n in names for seed in range(3))
    page = study.page.read_text()
    assert page in capfd.readouterr().out
    assert "| both | 60.00 ± 5.77 |" in page
    assert "| none | 50.00 ± 0.00 (≈) |" in page
    assert study.call("--json") == 0
    table = json.loads(capfd.readouterr().out)["tables"][0]
    scores = [next(iter(found.values())) for found in table["both"]]
    assert scores == [0.5, 0.6, 0.7]
    assert len(study.started) == 9, "what the command has trained itself is kept as well"


def test_a_variant_is_trained_with_its_own_fields(study: Study):
    config = study.trainings()["low_only-2"].config
    assert (config["seed"], config["steps"], config["data"]["data_dir"]) == (2, 300, "data")
    assert (config["model"]["high_tokens"], config["evals"]["val"]["when"]) == (0, "never")


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--steps=400", "both-0: its run has config.steps=300, this one config.steps=400"),
        ("--data_dir=d", "config.data.data_dir='data', this one config.data.data_dir='d'"),
    ],
)
def test_a_finished_run_of_something_else_does_not_count(
    study: Study, capsys: pytest.CaptureFixture[str], option: str, named: str
):
    study.write("both-0")
    assert study.call(option) == 1
    assert named in _error(capsys)
    assert study.started == []
    assert not study.page.exists()


def test_a_config_file_that_was_edited_between_two_calls_is_an_error(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    study.write("both-0")
    root = Path(ablation.__file__).parents[1]
    text = (root / GROUP_TOKENS.config).read_text()
    edited = study.folder / GROUP_TOKENS.config
    edited.parent.mkdir()
    edited.write_text(text.replace('"lr": 4e-3', '"lr": 5e-3'))
    monkeypatch.setattr("tools.trainings._ROOT", study.folder)
    assert study.call() == 1
    assert "config.optim.lr=0.004, this one config.optim.lr=0.005" in _error(capsys)
    assert study.started == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--seeds", "3"), "--seeds [3]: name 2 or more, all different"),
        (("--seeds", "3", "3"), "--seeds [3, 3]: name 2 or more, all different"),
        (("--jobs=0",), "--jobs=0: at least 1"),
        (("--jobs=-1",), "--jobs=-1: at least 1"),
        (("--steps=0",), "--steps=0: at least 1"),
        (("--steps=-5",), "--steps=-5: at least 1"),
    ],
)
def test_options_without_sense_are_refused_before_any_run(
    study: Study, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], named: str
):
    assert study.call(*options) == 1
    assert _error(capsys) == f"error: {named}"
    assert study.started == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_stop_the_runs_and_leave_no_page(study: Study, number: int):
    for name, training in study.trainings().items():
        study.plan(name, training.config, None, wait=True)
    with study.signalled(number, children=2):
        try:
            code: object = study.call("--jobs=2")
        except SystemExit as left:
            code = left.code
    assert code == 128 + number
    assert sorted(study.started) == ["both-0", "low_only-0"]
    assert not study.alive
    assert not study.page.exists()


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ((), "--study=group_tokens"),
        (
            ("--steps=7", "--jobs=2", "--seeds", "3", "4"),
            "--study=group_tokens --steps=7 --seeds 3 4 --jobs=2",
        ),
    ],
)
def test_the_page_gives_the_command_that_makes_it(
    study: Study, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], flags: str
):
    monkeypatch.setattr(ablation, "train_all", lambda trainings, jobs: None)
    summary = dict.fromkeys(GROUP_TOKENS.metrics, 0.5)
    monkeypatch.setattr("tools.studies.study.read_summary", lambda path: summary)
    assert study.call(*options) == 0
    expected = (
        "```bash\npython -m tools.build_dataset --dataset=scenes --data_dir=data\n"
        f"python -m tools.ablation {flags} --data_dir=data \\\n"
        f"    --output_dir={study.folder} \\\n    --page={study.page}\n```"
    )
    assert expected in study.page.read_text()
