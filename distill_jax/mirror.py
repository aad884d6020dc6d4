"""Copies the logs of a run to Weights & Biases or MLflow, during or after its training.

python -m distill_jax.mirror --workdir=runs/digits_guided --to=wandb
python -m distill_jax.mirror --workdir=runs/digits_guided --to=mlflow --follow
"""

import contextlib
import time

from absl import flags

from distill_jax.run import mirrors
from distill_jax.runtime import logging
from distill_jax.runtime.app import needed, run_app
from distill_jax.runtime.files import absolute


def define_flags() -> None:
    """Defines the flags of the command; not at import, because commands share flag names."""
    flags.DEFINE_string("workdir", None, "Workdir of the run.")
    flags.DEFINE_enum("to", None, [*mirrors.SERVICES], "Service that gets the logs.")
    flags.DEFINE_string("project", "distill_jax", "Project of W&B, or experiment of MLflow.")
    flags.DEFINE_bool("follow", False, "Go on with what the run writes, until Ctrl-C.")
    flags.DEFINE_float("seconds", 30.0, "Seconds between two looks of --follow.", lower_bound=1.0)


def main() -> None:
    """Mirrors the run of --workdir."""
    values = flags.FLAGS
    workdir = absolute(needed("workdir"))
    given = workdir, needed("to"), values.project
    with contextlib.suppress(KeyboardInterrupt):
        while values.follow:
            mirrors.mirror(*given)
            time.sleep(values.seconds)
    sent = mirrors.mirror(*given)
    logging.say(f"{values.to} has {logging.counted(sent, 'new line')} of {workdir}")


if __name__ == "__main__":
    define_flags()
    run_app(main)
