import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from refseg_jax.cli import signals
from refseg_jax.cli.command_line import (
    command_parser,
    ended,
    expanded,
    path,
)
from refseg_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def test_sigterm_unwinds_what_was_begun_and_the_handler_of_before_comes_back() -> None:
    told: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left, signals.unwound():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            # The handler runs before the next line, or while it waits.
            time.sleep(10)
            told.append("went on")
        finally:
            told.append("removed")
    assert left.value.code == 143
    assert told == ["removed"]
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGINT, 130, "stopped by Ctrl-C\n"), (signal.SIGTERM, 143, "stopped by SIGTERM\n")],
)
def test_signals_while_a_command_is_still_imported_end_it_with_one_line(
    number: signal.Signals, code: int, line: str, tmp_path: Path
) -> None:
    """As `tools` does it; libraries may swallow an exception at that time."""
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("import refseg_jax.cli\n")
    slow = "import time\ntry:\n    print('begun', flush=True)\n    time.sleep(60)\n"
    (package / "slow.py").write_text(f"{slow}except BaseException:\n    pass\n")
    # Python heeds Ctrl-C only if the process did so that started it.
    heed = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL)"
    begin = "os.execv(sys.executable, [sys.executable, '-m', 'mine.slow'])"
    with subprocess.Popen(
        [sys.executable, "-c", f"{heed}; {begin}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, line)


@pytest.mark.parametrize(("code", "late"), [(0, "late\n"), (1, "late\n"), (130, ""), (143, "")])
def test_after_a_signal_the_interpreter_does_nothing_more(code: int, late: str) -> None:
    source = (
        "import atexit; from refseg_jax.cli.signals import leave; atexit.register(print, 'late');"
    )
    command = [sys.executable, "-c", f"{source} print('done'); leave({code})"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, f"done\n{late}")


def test_threads_hear_no_signals_and_work_all_the_same() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(ended(lambda: 7)))
    thread.start()
    thread.join()
    assert codes == [7]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a\nb\x1b[31m.png: no; cure"), 2, r"error: a\nb\x1b[31m.png: no; cure"),
        (FileNotFoundError(2, "No such file", "a\nb"), 2, r"error: [Errno 2] No such file: 'a\nb'"),
        (OSError("told\nin lines\x07"), 2, r"error: told in lines\x07"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
    ],
)
def test_what_ends_a_command_is_one_line_and_a_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise error

    assert ended(work, failed=2) == code
    assert capsys.readouterr() == ("", f"{line}\n")


def test_sigterm_is_one_line_and_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(lambda: signal.raise_signal(signal.SIGTERM)) == 143
    assert capsys.readouterr() == ("", "stopped by SIGTERM\n")


def test_what_work_says_is_the_code() -> None:
    assert ended(lambda: None) == 0
    assert ended(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        ended(lambda: 1 // 0)


_SAYS = """
from refseg_jax.cli import command_line, signals
signals.leave(command_line.ended(lambda: print("scores")))
"""


def _closed_pipe() -> IO[str]:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


def _full_disk() -> IO[str]:
    full = Path("/dev/full")
    return full.open("w") if full.exists() else pytest.skip("this system has no such file")


@pytest.mark.parametrize("opened", [_closed_pipe, _full_disk])
def test_output_that_cannot_be_written_is_one_line(opened: Callable[[], IO[str]]) -> None:
    with opened() as out:
        # With a buffer, as where nobody asked for none: it is written at the very end.
        variables = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        done = subprocess.run(
            [sys.executable, "-c", _SAYS],
            cwd=ROOT, env=variables, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: [Errno ")


def test_texts_that_a_terminal_cannot_show_end_no_command() -> None:
    code = "import sys; from refseg_jax.cli.command_line import ended; ended(lambda: print('中 é'))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True
    )
    assert (done.returncode, done.stdout) == (0, rb"\u4e2d \xe9" + os.linesep.encode())


def test_a_flag_that_is_shortened_is_refused_in_one_printable_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = command_parser("tools.mine", "What it does.")
    parser.add_argument("--text")
    for flag in ("--te=x", "--text\x1b[31m=x"):
        with pytest.raises(SystemExit) as left:
            parser.parse_args([flag])
        assert left.value.code == 2
        said = capsys.readouterr().err
        assert "unrecognized arguments" in said and "\x1b" not in said


def test_the_home_folder_is_put_in_as_a_shell_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/data") == "/home/me/data" and path("~") == Path("/home/me")
    for text in ("data", "a/~/b", "~nobody_of_this_name/x", "~$lock.docx", "openai/clip", ""):
        assert expanded(text) == text


def test_commands_run_where_there_is_only_the_library() -> None:
    """As from a wheel of it: the other packages of the checkout are not there."""
    tools = {path.name for path in ROOT.glob("tools/*.py")}
    names = sorted(p.stem for p in ROOT.glob("refseg_jax/cli/[a-z]*.py") if p.name in tools)
    assert len(names) >= 4
    code = f"""
import runpy, sys
sys.modules.update(dict.fromkeys(("configs", "input_pipeline", "tools")))
for name in {names}:
    sys.argv = [name, "--help"]
    try:
        runpy.run_module(f"refseg_jax.cli.{{name}}", run_name="__main__")
    except SystemExit as left:
        print("left", name, left.code)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("left ")]
    assert lines == [f"left {name} 0" for name in names]
    assert done.stdout.count("usage: ") == len(names)
