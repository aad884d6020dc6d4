"""The dataset that a command reads beside a finished network, chosen by the user.

A student directory may come from anybody, and its manifest names a dataset: a folder, a bucket or a
TFDS name. Nothing outside the package is read at the word of such a file alone.
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
    """The flags --config and --data; not at import, for other command lines share names."""
    flags.disclaim_key_flags()  # They are the command's, so that its --help shows them.
    config_flags.DEFINE_config_file("config", None, "Config whose data to use.")
    flags.DEFINE_enum(
        "data", None, ["manifest"], "manifest: use the data that the student's manifest names."
    )


def choose(student: Student, values: Any) -> Mapping[str, Any]:
    """The options of a dataset, as in a config: those of --config, or of the student's manifest.

    The manifest's are used where the package holds the data, or where --data=manifest says so.

    Args:
      student: whose network was trained on them.
      values: of the flags.

    Raises:
      ValueError: where the user has to choose, with what the manifest names; for data of another
        shape than the network's; for a dataset that would be imported and is not in --allow.
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
            "this network was imported and does not say what its data were; name a config that "
            "does, such as --config=configs/cifar10_guided.py --config.data.data_dir=DIR"
        )
    if name in EMBEDDED or values.data == "manifest":
        check_allowed([name], values.allow)
        return data
    raise ValueError(
        f"{student.directory}/manifest.json names data that are not in the package, and a manifest "
        f"may come from anybody: {json.dumps(data)[:1000]}. Use them with --data=manifest, or name "
        "others, such as --config=configs/cifar10_guided.py --config.data.data_dir=DIR"
    )
