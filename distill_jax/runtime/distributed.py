"""Several processes as one run: how they find each other, exchange values and wait for all.

With one process all of it does nothing.
"""

from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils


def define_flags() -> None:
    """--coordinator, --num_processes and --process_id of a command line."""
    flags.disclaim_key_flags()  # They are the command's, so that its --help shows them.
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where no launcher tells.")
    flags.DEFINE_integer("num_processes", None, "Of a run on several machines.")
    flags.DEFINE_integer("process_id", None, "Of this one, from 0.")


def join() -> None:
    """`start` with the values of the flags."""
    values = flags.FLAGS
    start(values.coordinator, values.num_processes, values.process_id)


def start(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the processes of this run; call it before anything else of JAX.

    Without arguments JAX asks the launcher: Cloud TPU, GKE, SLURM and Open MPI say how many there
    are and which this one is. Where there is no launcher the run has one process.

    Args:
      coordinator: HOST:PORT of process 0.
      num_processes: how many there are.
      process_id: which one this is, from 0.

    Raises:
      ValueError: when some arguments are given and others are not, or they do not fit.
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
    """Whether this is the process that logs and writes files."""
    return jax.process_index() == 0


def broadcast_from_first(value: int) -> int:
    """The value that the first process has; all must call it, and it waits for all."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int64(value)))


def barrier(name: str) -> None:
    """Waits until all processes are here; `name` tells barriers apart."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def allgather(tree: Any) -> Any:
    """The whole arrays as NumPy's, on every process; all must call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
