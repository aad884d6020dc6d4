"""Functions for several processes in one run: start, broadcast, barrier and all-gather.

With a single process they do nothing.
"""

from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils


def define_flags() -> None:
    """Defines the flags --coordinator, --num_processes and --process_id."""
    flags.disclaim_key_flags()  # So that the flags are key flags of the command that calls this.
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if no launcher sets it.")
    flags.DEFINE_integer("num_processes", None, "Number of processes of the run.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", lower_bound=0)


def join() -> None:
    """Calls `start` with the values of the flags."""
    values = flags.FLAGS
    start(values.coordinator, values.num_processes, values.process_id)


def start(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the processes of this run; call it before any other function of JAX.

    Without arguments, JAX reads the number of processes and the id of this one from the launcher:
    Cloud TPU, GKE, SLURM or Open MPI. Without a launcher the run has one process.

    Args:
      coordinator: HOST:PORT of process 0.
      num_processes: number of processes.
      process_id: number of this process, from 0.

    Raises:
      ValueError: when only some of the arguments are given, or when they contradict each other.
    """
    given = (coordinator, num_processes, process_id)
    if given == (None, None, None):
        try:
            jax.distributed.initialize()
        except ValueError as error:
            if "should be defined" not in str(error):
                raise
        return
    fits = None not in given and ":" in coordinator and 0 <= process_id < num_processes  # type: ignore[operator]  # None is not in them.
    if not fits:
        raise ValueError(
            f"--coordinator is {coordinator}, --num_processes {num_processes}, --process_id "
            f"{process_id}; give all three or none, such as --coordinator=10.0.0.1:8476 "
            "--num_processes=2, and 0 and 1 as the --process_id of the two"
        )
    jax.distributed.initialize(coordinator, num_processes, process_id)


def first() -> bool:
    """Returns whether this is the first process, which logs and writes files."""
    return jax.process_index() == 0


def broadcast_from_first(value: int) -> int:
    """Returns the value of the first process; every process must call it, and it waits for all."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int64(value)))


def barrier(name: str) -> None:
    """Waits until every process reaches the barrier `name`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def allgather(tree: Any) -> Any:
    """Returns global arrays as NumPy arrays, on every process; every process must call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
