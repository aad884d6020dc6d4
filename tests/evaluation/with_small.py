"""Runs a command that knows the feature network "small".

python -m tests.evaluation.with_small FOLDER COMMAND --flags...    FOLDER has small.npz
"""

import os
import runpy
import sys

from distill_jax.evaluation.feature_networks import KINDS
from tests.evaluation.small import SMALL

if __name__ == "__main__":
    KINDS["small"] = SMALL
    os.environ["DISTILL_JAX_FEATURES"], command = sys.argv.pop(1), sys.argv.pop(1)
    runpy.run_module(f"distill_jax.{command}", run_name="__main__", alter_sys=True)
