"""SIGTERM becomes a flag while it is awaited, and is what it was before and after."""

import os
import signal

import pytest

from refseg_jax.training.preemption import Preemption


def test_notice_and_restored_handler() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.reached()
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.reached()
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.reached()
    assert signal.getsignal(signal.SIGTERM) is before


def test_handler_is_restored_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), Preemption():
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) is before
