"""The command `refseg`: its list, its names in help and errors, and what it imports."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from refseg_jax.cli import commands
from refseg_jax.cli.command_line import called_as_refseg, spoken

ROOT = Path(commands.__file__).resolve().parents[2]


def test_the_list_of_commands_needs_no_jax() -> None:
    code = """
import sys
from refseg_jax.cli.commands import run
assert run(["--help"]) == 0
assert run(["predcit"]) == 2
heavy = {"jax", "flax", "numpy", "cv2", "absl", "orbax", "huggingface_hub", "etils"}
print(sorted(heavy & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *listed, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    for name, command in commands.COMMANDS.items():
        assert any(line.split()[:1] == [name] and command.line in line for line in listed)
    told = "error: unknown command 'predcit': did you mean 'predict'?"
    assert done.stderr == f"{told}; refseg --help has a line on each\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["doctor"], "doctor needs a checkout of refseg_jax; there: python -m tools.doctor"),
        (["--halp"], "unknown command '--halp'"),
        (["a\x1bb"], r"'a\x1bb'"),
        ([], "usage: refseg COMMAND"),
    ],
)
def test_what_is_no_command_is_told(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.run(arguments) == 2
    said = capsys.readouterr()
    assert words in said.err and said.out == ""
    assert "\x1b" not in said.err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("refseg_jax 0.")


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_a_command_has_the_name_by_which_it_is_called(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same parser, called in both ways; `tools` is nothing that a wheel has."""
    with pytest.raises(SystemExit) as left:
        commands.run([name, "--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: refseg {name} ") and f"    refseg {name} --" in said
    assert not [other for other in commands.COMMANDS if f"tools.{other}" in said]
    with pytest.raises(SystemExit) as left:
        commands.run([name, "--nothing"])
    assert left.value.code == 2
    assert f"\nrefseg {name}: error: " in capsys.readouterr().err
    parser = importlib.import_module(commands.COMMANDS[name].module).make_parser()
    assert parser.format_help().startswith(f"usage: python -m tools.{name} ")
    # In a checkout, the module of that name is the same command.
    there = importlib.import_module(f"tools.{name}")
    assert there.main.__module__ == commands.COMMANDS[name].module


def test_errors_name_commands_as_they_are_called(capsys: pytest.CaptureFixture[str]) -> None:
    line = "write it with python -m tools.export, or tools.doctor"
    assert spoken(line) == line
    with called_as_refseg(commands.COMMANDS):
        assert spoken(line) == "write it with refseg export, or tools.doctor"
    assert spoken(line) == line
    flags = ["--protocol=x", "--predictions=none", "--references=none"]
    assert commands.run(["score", *flags]) == 1
    assert capsys.readouterr().err == "error: none: is no file; check --predictions\n"


def test_a_signal_to_the_whole_command_is_one_line(tmp_path: Path) -> None:
    """Of the entry point, while the module of the command is imported."""
    slow = "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nraise AssertionError\n"
    (tmp_path / "slow_command.py").write_text(slow)
    code = """
import sys
from refseg_jax.cli import commands
commands.COMMANDS = {"slow": commands.Command("slow_command", "")}
sys.argv = ["refseg", "slow"]
commands.refseg()
"""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(tmp_path)!r}){code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "stopped by SIGTERM\n")
