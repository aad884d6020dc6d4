"""Your own teacher format: parameters in an .npz file by their paths, described by a config.

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
    """Reads the network whose parameters are arrays such as "conditioning/t_embed_0/kernel".

    Args:
      path: path of the file.
      config: config whose model, schedule, parameterization and data describe the network.

    Raises:
      ValueError: without a config. Arrays that do not fit the network are refused by the writer.
    """
    if config is None:
        raise ValueError(f"{path} has parameters only; describe its network with --config=FILE.py")
    with np.load(path) as file:  # It refuses arrays of objects, which could run code.
        leaves = {tuple(name.split("/")): of_array(file[name]) for name in file}
    described = {**configured(config), "num_steps": 64, "label_dropout": 0.1}
    return Imported(params=traverse_util.unflatten_dict(leaves), **described)
