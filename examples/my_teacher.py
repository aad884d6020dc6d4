"""A teacher format of one's own: parameters in an .npz, each under its path, described by a config.

python -m distill_jax.teachers examples.my_teacher:npz teacher.npz \
    --config=examples/my_config.py --out=teachers/mine
python -m distill_jax.teachers check teachers/mine --allow=examples.my_network:convolutions
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util

from distill_jax.storage.weights import of_array
from distill_jax.teachers.base import Imported, configured


def npz(path: epath.PathLike, config: Mapping[str, Any] | None) -> Imported:
    """The network whose parameters are arrays such as "conditioning/t_embed_0/kernel".

    Args:
      path: of the file.
      config: its model, schedule, parameterization and data say what the network is.

    Raises:
      ValueError: without a config. What does not fit the network is refused when it is written.
    """
    if config is None:
        raise ValueError(f"{path} has parameters only; describe its network with --config=FILE.py")
    with np.load(path) as file:  # Arrays of objects, which could run code, are refused.
        leaves = {tuple(name.split("/")): of_array(file[name]) for name in file}
    described = {**configured(config), "num_steps": 64, "label_dropout": 0.1}
    return Imported(params=traverse_util.unflatten_dict(leaves), **described)
