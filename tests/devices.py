"""A process with several forced devices, for tests of what only several do."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_on_devices(devices: int, code: str, *arguments: object, flags: str = "") -> str:
    """Runs code, which fails by an exception, in a process with so many CPU devices.

    Args:
        devices: their number.
        code: Python; modules are imported from the repository.
        arguments: of the process, `sys.argv[1:]`.
        flags: more of XLA's flags.

    Returns:
        What it printed.
    """
    forced = f"--xla_force_host_platform_device_count={devices} {flags}"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": forced},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
