import os
import signal
import time

import pytest

from refseg_jax.cli.command_line import unwound_by_sigterm


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
