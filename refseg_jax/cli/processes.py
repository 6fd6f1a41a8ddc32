"""Several processes as one run: they join, were given the same config, and end together.

JAX's client sends signs of life. It ends a process with status 134 (SIGABRT), after lines that name the
task, as soon as the coordinator (process 0) tells of a process that sends none, or sends none itself.
"""

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from refseg_jax import sharding
from refseg_jax.cli import signals
from refseg_jax.cli.command_line import error_line
from refseg_jax.errors import UserError

#: Fields in which hosts may differ: each may have its own copy of files.
_OWN = re.compile(r"(data|mixture\.[^.]+)\.data_dir|init\..*|loop\.compilation_cache")
#: Seconds in which processes that fail together have all failed.
_PARTING = 5.0
#: Seconds beyond `max_silence` in which JAX's client tells of a process that went away.
_TOLD = 10.0


@contextlib.contextmanager
def joined(distributed: bool, max_silence: int) -> Iterator[None]:
    """Joins the processes of a cluster into one run; ends this process if the block fails.

    JAX finds the other processes by itself on TPU pods and under SLURM. Elsewhere, set the variables
    `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`. Under
    SLURM, JAX gives each process one GPU, unless `JAX_LOCAL_DEVICE_IDS` names more.

    An error ends this process at once: at its usual end it would wait for the others, which wait for it
    in a computation. If such a computation fails because another process is gone, this one says so and
    leaves the word to JAX's client, which knows which it was.

    Args:
        distributed: whether there are other processes; if not, nothing is done.
        max_silence: seconds without a sign of life after which a process counts as gone.

    Raises:
        UserError: `max_silence` is not positive, the variables are wrong, or there are none and JAX
            finds no other processes.
    """
    if not distributed:
        yield
        return
    if max_silence <= 0:
        raise UserError(f"config.loop.max_silence={max_silence}: give a positive number of seconds")
    _join(max_silence)
    try:
        yield
    except BaseException as error:
        _leave(_told(error, max_silence))


def told(error: BaseException) -> int:
    """Prints the line of an error that a command expects, or of Ctrl-C; returns the exit code.

    If the environment variable `REFSEG_TRACEBACK` is set, an error that is no `UserError` is raised.
    """
    if isinstance(error, KeyboardInterrupt):
        return signals.told(error)
    shown = () if os.environ.get("REFSEG_TRACEBACK") else (ValueError, OSError)
    if not isinstance(error, (UserError, *shown)):
        raise error
    print(error_line(error), file=sys.stderr)
    return 1


def check_same_config(config: Mapping[str, Any]) -> None:
    """Compares the config of this process with that of process 0; all processes must call it.

    Paths that a host may have of its own (`_OWN`) are not compared.

    Raises:
        UserError: a process was given another config, on all processes; those that differ from
            process 0 name the first field.
    """
    if jax.process_count() == 1:
        return
    ours = json.dumps(_fields(config)).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(ours))))
    content = np.zeros(length, np.uint8)
    if jax.process_index() == 0:
        content[:] = np.frombuffer(ours, np.uint8)
    theirs = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes())
    mine = json.loads(ours)
    differs = sorted(n for n in {**theirs, **mine} if theirs.get(n) != mine.get(n))
    if sharding.everywhere(not differs):
        return
    cure = "give the same command on all hosts"
    if not differs:
        raise UserError(f"another process was given another config and names the field: {cure}")
    name = differs[0]
    raise UserError(
        f"process {jax.process_index()} was given config.{name}={mine.get(name)!r}, process 0 "
        f"{theirs.get(name)!r}: {cure}"
    )


def _join(max_silence: int) -> None:
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    count, number = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    known: dict[str, Any] = {}
    if address and not re.fullmatch(r".+:\d+", address):
        raise UserError(f"JAX_COORDINATOR_ADDRESS={address}: give host:port of process 0")
    if address and count and number:
        if not (count.isdecimal() and number.isdecimal() and int(number) < int(count)):
            raise UserError(
                f"JAX_NUM_PROCESSES={count} JAX_PROCESS_ID={number}: number the processes from 0, each "
                "below their count"
            )
        known = {"num_processes": int(count), "process_id": int(number)}
    try:
        jax.distributed.initialize(address, heartbeat_timeout_seconds=max_silence, **known)
    except ValueError as error:
        raise UserError(
            f"--distributed: JAX finds no other processes ({error}); set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID, or leave the flag out if this host is alone"
        ) from error
    # absl has every thread's stack printed, under which JAX's lines would be buried.
    signal.signal(signal.SIGABRT, signal.SIG_DFL)


def _told(error: BaseException, max_silence: int) -> int:
    """Tells of an error as the process alone would; returns the exit code."""
    try:
        if isinstance(error, SystemExit):
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        if _common(error):
            _await_word(error, max_silence)
        return told(error)
    except Exception:
        traceback.print_exc()
        return 1


def _common(error: BaseException) -> bool:
    """Whether an error may be that of a computation in which another process did not take part."""
    # Gloo's errors come as `ValueError` where numpy waits for the result.
    of_jax = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
    return of_jax and "RESOURCE_EXHAUSTED" not in str(error)


def _await_word(error: BaseException, max_silence: int) -> None:
    """Says that a common computation failed, and waits for JAX's client to end this process."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    print(
        f"error: process {jax.process_index()}: a computation with the other processes failed "
        f"({reason[:200]}); if one of them is gone, JAX names it within "
        f"config.loop.max_silence={max_silence} s, and the same command on all hosts resumes",
        file=sys.stderr,
        flush=True,
    )
    time.sleep(max_silence + _TOLD)


def _leave(code: int) -> NoReturn:
    """Ends this process, together with the others if they end as well."""

    def part() -> None:
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    parting = threading.Thread(target=part, name="part", daemon=True)
    parting.start()
    parting.join(_PARTING)
    os._exit(code)


def _fields(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of every field that must be the same everywhere."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        path = prefix + name
        if isinstance(value, Mapping):
            flat |= _fields(value, f"{path}.")
        elif not _OWN.fullmatch(path):
            flat[path] = value
    return flat
