"""Every command line of README.md, of the site, of docstrings and of the notebook would start.

The tool exists, its parser takes the flags, the config file makes a config that has the fields, and the
values are of their types; targets of `make` and extras of `pip install` exist. Nothing is run.
"""

import re

import pytest

from tests.docs.commands import Command, all_commands, fault
from tests.docs.pages import ROOT

# ml_collections reads config files by a way that Python is going to drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

COMMANDS = list(all_commands())


def test_every_command_line_would_start() -> None:
    faults = {f"{command.place}: {command.line}": fault(command) for command in COMMANDS}
    told = [f"{line}\n    {why}" for line, why in faults.items() if why]
    assert not told, "\n" + "\n".join(told)


@pytest.mark.parametrize(
    "place",
    ["README.md", "docs/get_started.md", "configs/grefcoco_rela.py", "tools/doctor/command.py"],
)
def test_command_lines_are_found(place: str) -> None:
    assert any(command.place.startswith(place) for command in COMMANDS)


def test_commands_of_the_notebook_are_found() -> None:
    lines = [command.line for command in COMMANDS if command.place.endswith(".ipynb")]
    assert any(line.startswith("python main.py") and "--config.steps=1" in line for line in lines)
    assert any(line.startswith("python -m tools.export") for line in lines)


def test_what_ci_makes_has_a_rule() -> None:
    text = (ROOT / ".ci/run").read_text()
    lines = re.findall(
        r"^ *(?:if |stage )?make (?:--silent )?(.*?)(?:; then)?$", text, re.MULTILINE
    )
    assert len(lines) > 5
    assert not [why for line in lines if (why := fault(Command(".ci/run", f"make {line}")))]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("python -m tools.doktor --dataset=scenes", "no module tools.doktor"),
        ("python -m tools.doctor --data=scenes", "--data"),
        ("python -m tools.score --protocol=cris", "--predictions"),
        ("python -m tools.import_weights --format=tf --source=a --output=b", "'tf'"),
        ("python -m tools.build_dataset --dataset=refcocoo/unc --data_dir=data", "refcocoo/unc"),
        ("python -m tests.golden.runs --wrote", "--wrote"),
        ("python main.py --workdir=runs/a", "--config"),
        ("python main.py --config=configs/scenes_unires.py", "--workdir"),
        ("python main.py --config=configs/nothing.py --workdir=a", "nothing.py"),
        ("python main.py --config=configs/refcoco_unires.py:B/17 --workdir=a", "B/17"),
        ("python main.py --config=configs/scenes_unires.py --workdir=a --mode=test", "test"),
        ("python main.py --config=configs/scenes_unires.py --workdir=a --config.lr=1", "lr"),
        ("python main.py --config=configs/scenes_unires.py --workdir=a --config.steps=1.5", "1.5"),
        ("python main.py --config=configs/scenes_unires.py --workdir=a steps", "steps"),
        (
            "python -m tools.compile --config=configs/scenes_unires.py --topology=v5e:2x2 --config.lr=1",
            "lr",
        ),
        ("python -m tools.compile --config=configs/scenes_unires.py --mode=train", "--topology"),
        ("python other.py", "no command"),
        ("refseg doctor --dataset=scenes", "refseg has no doctor"),
        ("refseg score --protocol=cris", "--predictions"),
        ("srun python main.py --workdir=a", "--config"),
        ("export A=b && python main.py --workdir=a", "--config"),
        ("make everything", "everything"),
        ("pip install -e '.[gpu]'", "gpu"),
        ("pip install 'refseg_jax[onx]'", "onx"),
        ("conda install refseg_jax", "no command"),
        ("--config.model.relation=paper", "relation"),
        ("--config.modell", "modell"),
        ("python -m tools.doctor 'a", "quotation"),
    ],
)
def test_a_fault_is_told(line: str, words: str) -> None:
    assert words in fault(Command("here", line))


@pytest.mark.parametrize(
    "line",
    [
        "make lint test",
        "make PYTHON=3.11 test",
        "JAX_PLATFORMS=cpu python -m tools.doctor --dataset=mine --data_dir=data",
        "srun --nodes=2 python main.py --config=configs/scenes_unires.py --workdir=a --distributed",
        "--config.model.relationship=paper",
        "--config.eval.canvas",
    ],
)
def test_what_works_has_no_fault(line: str) -> None:
    assert fault(Command("here", line)) == ""
