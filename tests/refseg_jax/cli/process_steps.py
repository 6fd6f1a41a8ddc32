"""A run that computes with the other processes for ever; `processes_test` runs it in its own processes.

    python -m tests.refseg_jax.cli.process_steps MODE

Modes: `for_ever`; `one_fails`: process 1 raises an error of its own; `one_breaks`: an unexpected one;
`other_config`: process 1 has another config; `other_places`: its files lie elsewhere.
"""

import sys
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from refseg_jax.cli import processes
from refseg_jax.errors import UserError

#: Seconds until a silent process counts as gone.
MAX_SILENCE = 10


def main(mode: str) -> None:
    """Runs until something ends it."""
    with processes.joined(True, MAX_SILENCE):
        second = jax.process_index() == 1
        config = {
            "optim": {"lr": 0.5 if second and mode == "other_config" else 0.25},
            "data": {"data_dir": "b" if second else "a", "dataset": "scenes"},
            "mixture": {"one": {"data_dir": "b" if second else "a", "weight": 1.0}},
            "init": {"clip": "b" if second else "a"},
        }
        processes.check_same_config(config)
        print("joined", flush=True)
        if mode == "other_places":
            return
        for step in range(10**6):
            multihost_utils.process_allgather(np.int32(step))
            if second and step == 5 and mode == "one_fails":
                raise UserError("/data/shard-3: no such file")
            if second and step == 5 and mode == "one_breaks":
                raise TypeError("a bug")
            time.sleep(0.01)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except UserError as error:
        sys.exit(processes.told(error))
