"""Writes and reads the arrays of a checkpoint; the only file that imports Orbax.

It uses the API of Orbax 0.12 (`AsyncCheckpointer`), not `orbax.checkpoint.v1`, which 0.12 marks as
experimental. A state is stored as a flat dictionary `"params/<dotted path>" -> array`. Reading it
needs neither this project's types nor optax's, and a part of it can be restored alone.
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
from refseg_jax.storage import buckets


class ArrayWriter:
    """Writes step folders asynchronously, from all processes; a folder gets its name when complete."""

    def __init__(self) -> None:
        every_process = MultiprocessingOptions(primary_host=None)
        data = data_name(jax.process_index(), jax.process_count())
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                # Compression shrinks trained f32 parameters by only 8 %; not worth the CPU time.
                state=ocp.PyTreeCheckpointHandler(use_compression=False),
                data=ocp.JsonCheckpointHandler(data, multiprocessing_options=every_process),
                run=ocp.JsonCheckpointHandler("run.json"),
            )
        )

    def start(self, folder: Path, arrays: dict[str, Any], data: Any, record: RunRecord) -> None:
        """Starts to write a step folder; returns when the arrays are copied off the devices.

        Args:
            folder: must not exist yet.
            arrays: name -> array, as from `named`.
            data: state of this process's data iterator, JSON.
            record: content of `run/run.json`.
        """
        self._orbax.save(
            folder,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(arrays),
                # A copy: the caller may change its objects while the files are being written.
                data=ocp.args.JsonSave(json.loads(json.dumps(data))),
                run=ocp.args.JsonSave(json.loads(json.dumps(record.as_json()))),
            ),
        )

    def finish(self) -> None:
        """Waits until the folder is complete; raises the error that a background write met."""
        self._orbax.wait_until_finished()

    def close(self) -> None:
        """Releases the threads."""
        self._orbax.close()


def read_arrays(
    folder: Path, record: RunRecord, layouts: Mapping[str, jax.sharding.Sharding | None]
) -> dict[str, Any]:
    """Reads arrays of a checkpoint straight into their layouts.

    Args:
        folder: the step folder.
        record: its record; dtypes and shapes are compared with it.
        layouts: name of each array to read -> its sharding, or `None` for a numpy array.

    Raises:
        DamagedError: an array cannot be read, or differs from the record.
        UserError: the folder lies in a bucket that cannot be reached.
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
        if buckets.is_remote(folder) and (told := buckets.trouble(error)):
            raise UserError(f"{folder}: {told}") from error
        # Orbax and TensorStore raise many types of errors for content that they cannot decode.
        line = str(error).strip().splitlines() or [type(error).__name__]
        raise DamagedError(f"{folder / 'state'}: {line[0][:300]}") from error
    finally:
        reader.close()
    for name in layouts:
        # Orbax returns the placeholder from `item` for an array that it does not find.
        found = arrays[name]
        if isinstance(found, int) or signature(found) != record.arrays[name]:
            raise DamagedError(f"{folder / 'state'}: {name!r} is not what run.json says")
    return arrays


def check_arrays(folder: Path, record: RunRecord, wanted: Mapping[str, Any]) -> None:
    """Compares names, dtypes and shapes of the arrays that a run needs with those of a checkpoint.

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
    """Leaves of a tree by their paths, e.g. `"opt_state/0/mu/head.kernel"`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def signature(leaf: Any) -> tuple[str, tuple[int, ...]]:
    """Dtype (its numpy name) and shape of an array."""
    return str(np.dtype(leaf.dtype)), tuple(leaf.shape)


def data_name(index: int, count: int) -> str:
    """Name of the file with the data iterator's state of process `index` of `count`."""
    return f"process_{index}_of_{count}.json"


def disk_trouble(error: BaseException | None) -> str | None:
    """The file system's reason for a failure, e.g. a full disk; `None` if there is none.

    Searches the error and its causes. TensorStore puts the reason into the text of a `ValueError`.
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
    """Drops Orbax's progress messages, and tracebacks of errors that are raised anyway."""
    return "/orbax/" not in record.pathname.replace("\\", "/")


logging.getLogger("absl").addFilter(_hide_orbax)
