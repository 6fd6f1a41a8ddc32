"""A run that only saves checkpoints; `checkpointer_process_test` runs it in its own process.

    python -m tests.refseg_jax.checkpoints.checkpoint_steps FOLDER MODE [COORDINATOR COUNT ID]

The value of every array is determined by the step, so that a reader can verify a checkpoint. The last
line that it prints is JSON.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from refseg_jax import sharding
from refseg_jax.checkpoints.checkpointer import Checkpointer
from refseg_jax.errors import UserError
from refseg_jax.training.preemption import Preemption

SHAPE = (512, 64)
CONFIG = {"name": "steps"}
#: Seconds after which JAX's client ends a process when another one is gone.
MAX_SILENCE = 10


def layouts() -> dict[str, Any]:
    """Two arrays that are sharded over all devices, and a replicated one."""
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=-1))
    cut, whole = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P())
    return {"step": whole, "params": {"a.kernel": cut}, "opt_state": {"a.kernel": cut}}


def expected(step: int) -> dict[str, Any]:
    """The state at a step as numpy arrays."""
    rng = np.random.default_rng(step)
    return {
        "step": np.int32(step),
        "params": {"a.kernel": rng.standard_normal(SHAPE, np.float32)},
        "opt_state": {"a.kernel": rng.standard_normal(SHAPE, np.float32)},
    }


def state(step: int) -> dict[str, Any]:
    """The state at a step on the devices."""

    def place(x: np.ndarray, layout: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(x.shape, layout, lambda index: x[index])

    return jax.tree.map(place, jax.tree.map(np.asarray, expected(step)), layouts())


def restore(saver: Checkpointer) -> dict[str, Any]:
    """Restores the newest sound checkpoint, and compares it with the expected state."""
    abstract = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype, sharding=at),
        expected(0),
        layouts(),
    )
    restored = saver.restore_latest(abstract)
    if restored is None:
        return {"step": 0}

    def same(x: jax.Array, y: np.ndarray, layout: NamedSharding) -> bool:
        pieces = [np.array_equal(p.data, np.asarray(y)[p.index]) for p in x.addressable_shards]
        return x.sharding == layout and all(pieces)

    equal = jax.tree.map(same, restored.state, expected(restored.step), layouts())
    return {
        "step": restored.step,
        "identical": all(jax.tree.leaves(equal)),
        "data_state": restored.data_state,
        "held": restored.state["params"]["a.kernel"].addressable_shards[0].data.size,
    }


def save(saver: Checkpointer, step: int) -> None:
    """Saves one checkpoint; every process has another data state."""
    data = {"next": step, "process": jax.process_index()}
    saver.save(step, state(step), data_state=data, config=CONFIG, metrics=None)


def save_for_ever(saver: Checkpointer) -> None:
    """Resumes, and saves at every step until it is killed."""
    found = restore(saver)
    print(json.dumps(found), flush=True)
    step = found["step"]
    while True:
        step += 1
        save(saver, step)
        time.sleep(0.01)


def until_preempted(saver: Checkpointer) -> dict[str, Any]:
    """Steps until SIGTERM, then saves."""
    with Preemption() as preemption:
        step = 0
        while not preemption.reached():
            if step == 3:
                print("ready", flush=True)
            time.sleep(0.01)
            # As in the loop after an evaluation.
            if step % 3 == 0 and preemption.reached():
                break
            step += 1
        save(saver, step)
        saver.wait()
    return {"saved": step}


def on_a_full_disk(saver: Checkpointer) -> dict[str, Any]:
    """Saves a sound checkpoint, then one on a disk that takes only 20 kB of a file."""
    save(saver, 1)
    saver.wait()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    message = ""
    try:
        save(saver, 2)
        saver.wait()
    except UserError as error:
        message = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    found = restore(saver)
    save(saver, 2)
    saver.wait()
    return {"message": message, "found": found, "after": restore(saver)}


def main() -> None:
    """Runs the mode that the second argument names."""
    if len(sys.argv) > 3:
        address, count, number = sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
        jax.distributed.initialize(address, count, number, heartbeat_timeout_seconds=MAX_SILENCE)
    jnp.zeros(()).block_until_ready()
    saver = Checkpointer(Path(sys.argv[1]), keep_latest=2)
    modes = {
        "save": lambda: [save(saver, step) for step in (1, 2, 3)] and saver.wait(),
        "restore": lambda: restore(saver),
        "save_for_ever": lambda: save_for_ever(saver),
        "until_preempted": lambda: until_preempted(saver),
        "full_disk": lambda: on_a_full_disk(saver),
    }
    print(json.dumps(modes[sys.argv[2]]()), flush=True)
    saver.close()


if __name__ == "__main__":
    main()
