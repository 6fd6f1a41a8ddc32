"""Arrays of a checkpoint on the disk: the only file that knows Orbax, behind `checkpointer.py`.

The API is that of Orbax 0.12 (`AsyncCheckpointer`), not its `v1`, which is still marked
experimental there. A state is stored as a flat dictionary `"params/<dotted path>" -> array`: no
type of ours or optax's is needed to read it, and part of it can be restored alone.
"""

import errno
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.options import MultiprocessingOptions

from refseg_jax.checkpoints.folder import DamagedError, RunRecord
from refseg_jax.errors import UserError


class ArrayWriter:
    """Writes step folders asynchronously, from all processes; a folder appears when it is whole."""

    def __init__(self) -> None:
        every_process = MultiprocessingOptions(primary_host=None)
        data = data_name(jax.process_index(), jax.process_count())
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                # Trained f32 numbers hardly compress (by 8 %); not trying leaves the cores alone.
                state=ocp.PyTreeCheckpointHandler(use_compression=False),
                data=ocp.JsonCheckpointHandler(data, multiprocessing_options=every_process),
                run=ocp.JsonCheckpointHandler("run.json"),
            )
        )

    def start(self, folder: Path, arrays: dict[str, Any], data: Any, record: RunRecord) -> None:
        """Returns when the arrays are copied off the devices."""
        self._orbax.save(
            folder,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(arrays),
                # A copy: the caller may change what it gave us while files are still written.
                data=ocp.args.JsonSave(json.loads(json.dumps(data))),
                run=ocp.args.JsonSave(json.loads(json.dumps(record.as_json()))),
            ),
        )

    def finish(self) -> None:
        """Returns when the folder has its name; raises what went wrong."""
        self._orbax.wait_until_finished()

    def close(self) -> None:
        """Releases the threads."""
        self._orbax.close()


def read_arrays(
    folder: Path, record: RunRecord, layouts: Mapping[str, jax.sharding.Sharding | None]
) -> dict[str, Any]:
    """The named arrays, laid out; numpy where the layout is `None`.

    Raises:
        DamagedError: Orbax cannot read them.
    """
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    try:
        how = {name: _restore_args(*record.arrays[name], at) for name, at in layouts.items()}
        arrays = reader.restore(
            folder / "state",
            args=ocp.args.PyTreeRestore(
                item=dict.fromkeys(how, 0), restore_args=how, partial_restore=True
            ),
        )
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        # Orbax and TensorStore raise errors of many kinds for content that they cannot decode.
        line = str(error).strip().splitlines() or [type(error).__name__]
        raise DamagedError(f"{folder / 'state'}: {line[0][:300]}") from error
    finally:
        reader.close()
    for name in layouts:
        # Where Orbax finds nothing it gives back what stood in `item`.
        found = arrays[name]
        if isinstance(found, int) or signature(found) != record.arrays[name]:
            raise DamagedError(f"{folder / 'state'}: {name!r} is not what run.json says")
    return arrays


def check_arrays(folder: Path, record: RunRecord, wanted: Mapping[str, Any]) -> None:
    """Compares what the run needs with what the checkpoint holds.

    Raises:
        UserError: they differ; the message names the first difference.
    """
    have = record.arrays
    for name in [*wanted, *have]:
        there = have.get(name)
        here = signature(wanted[name]) if name in wanted else None
        if there != here:
            raise UserError(
                f"{folder}: {name!r} is {_shown(there)} in the checkpoint and {_shown(here)} in "
                "this config: use the config that the checkpoint was trained with, or another "
                "--workdir (config.init.checkpoint starts from its parameters)"
            )


def named(tree: Any) -> dict[str, Any]:
    """Leaves under their path, e.g. `"opt_state/0/mu/head.kernel"`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def signature(leaf: Any) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape."""
    return str(np.dtype(leaf.dtype)), tuple(leaf.shape)


def data_name(index: int, count: int) -> str:
    """File of one process's data iterator."""
    return f"process_{index}_of_{count}.json"


def disk_trouble(error: BaseException | None) -> str | None:
    """What the file system said, from a chain of exceptions; `None` if it said nothing.

    TensorStore reports the reason as text inside a ValueError.
    """
    texts = ("No space left on device", "Disk quota exceeded", "File too large")
    while error is not None:
        for text in (*texts, "Permission denied", "Read-only file system"):
            if text in str(error):
                return text
        if isinstance(error, OSError) and error.errno is not None:
            return error.strerror or errno.errorcode.get(error.errno, str(error.errno))
        error = error.__cause__ or error.__context__
    return None


def _shown(signature: tuple[str, tuple[int, ...]] | None) -> str:
    return f"{signature[0]}{list(signature[1])}" if signature else "absent"


def _restore_args(
    dtype: str, shape: tuple[int, ...], layout: jax.sharding.Sharding | None
) -> ocp.RestoreArgs:
    if layout is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(
        restore_type=jax.Array, sharding=layout, global_shape=shape, dtype=np.dtype(dtype)
    )


def _hide_orbax(record: logging.LogRecord) -> bool:
    """Drops Orbax's running commentary, and the traces of errors that are raised anyway."""
    return "/orbax/" not in record.pathname.replace("\\", "/")


logging.getLogger("absl").addFilter(_hide_orbax)
