import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refseg_jax.cli.command_line import unwound_by_sigterm

ROOT = Path(__file__).resolve().parents[3]


def test_sigterm_unwinds_what_was_begun_and_the_handler_of_before_comes_back() -> None:
    told: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left, unwound_by_sigterm():
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
