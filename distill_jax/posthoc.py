"""Reconstructs an EMA of another length after training, from the snapshots of a stage.

python -m distill_jax.posthoc --stage=runs/x/s00_teacher --sigma_rel=0.15 --out=runs/x/long
"""

import re

from absl import flags

from distill_jax.run.snapshots import reconstruct
from distill_jax.runtime import logging
from distill_jax.runtime.app import needed, run_app
from distill_jax.runtime.files import absolute
from distill_jax.teachers.writer import check_free


def define_flags() -> None:
    """Defines the flags of the command; not at import, because commands share flag names."""
    flags.DEFINE_string("stage", None, "A finished stage that was trained with `posthoc`.")
    flags.DEFINE_float(
        "sigma_rel",
        None,
        "Length of the average: the standard deviation of its weights over the iterations, as a "
        "fraction of the training; above 0 and below 0.289.",
    )
    flags.DEFINE_string("out", None, "New directory of the network.")
    flags.DEFINE_multi_string(
        "allow", [], "Code, package.module:Name, that is imported if the network names it."
    )


def main() -> None:
    """Reconstructs the average and writes --out."""
    values = flags.FLAGS
    stage, sigma_rel, out = needed("stage"), needed("sigma_rel"), absolute(needed("out"))
    check_free(out)
    if found := re.match(r"s\d+_", out.name):
        raise ValueError(f"--out={out} has the name of a stage; choose one without {found[0]}")
    made = reconstruct(stage, sigma_rel, out / "final", values.allow)
    logging.say(
        f"wrote the average of {made.stage} of sigma_rel {sigma_rel:g} to {out}: "
        f"{logging.counted(made.snapshots, 'snapshot')}, whose sum has its profile to "
        f"{made.error:.2%}"
    )


if __name__ == "__main__":
    define_flags()
    run_app(main)
