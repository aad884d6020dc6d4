"""The user's choice of the dataset that a command reads for a finished network.

The manifest of a student names a dataset: a folder, a bucket or a TFDS name. A student directory
may come from anybody, so data outside the package is read only if the user agrees.
"""

import json
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import config_flags

from distill_jax.data import DATASETS, EMBEDDED, Dataset
from distill_jax.runtime.registry import EVERYTHING, build, check_allowed
from distill_jax.sampling.student import Student


def define_flags() -> None:
    """Defines the flags --config and --data; not at import, because commands share flag names."""
    flags.disclaim_key_flags()  # So that the flags are key flags of the command that calls this.
    config_flags.DEFINE_config_file("config", None, "Config whose data to use.")
    flags.DEFINE_enum(
        "data", None, ["manifest"], "manifest: use the data that the student's manifest names."
    )


def choose(student: Student, values: Any) -> Mapping[str, Any]:
    """Returns the options of the dataset, from --config or from the student's manifest.

    The manifest's dataset is used if it is part of the package, or with --data=manifest.

    Args:
      student: the network that was trained on the data.
      values: the values of the flags.

    Raises:
      ValueError: when the user has to choose; for data of another shape than the network's; for a
        dataset that would be imported and is not in --allow.
    """
    data = student.manifest.data or {}
    if values.config is not None:
        data = values.config.data.to_dict()
        shape = build(DATASETS, "dataset", data, allow=EVERYTHING, makes=Dataset).spec.x.shape
        if shape != student.image_shape:
            raise ValueError(f"the data are of shape {shape}, the network's {student.image_shape}")
        return data
    name = data.get("name")
    if name is None:
        raise ValueError(
            "the manifest of this imported network names no data; name a config with its data, "
            "such as --config=configs/cifar10_guided.py --config.data.data_dir=DIR"
        )
    if name in EMBEDDED or values.data == "manifest":
        check_allowed([name], values.allow)
        return data
    raise ValueError(
        f"{student.directory}/manifest.json names data that are not in the package, and a manifest "
        f"may come from anybody: {json.dumps(data)[:1000]}. Use them with --data=manifest, or name "
        "others, such as --config=configs/cifar10_guided.py --config.data.data_dir=DIR"
    )
