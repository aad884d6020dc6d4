"""The user's choice of the dataset that a command reads for a finished network.

The manifest of a student names a dataset: a folder, a bucket or a TFDS name. A student directory
may come from anybody, so data outside the package is read only if the user agrees.
"""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from absl import flags

from distill_jax.data import DATASETS, EMBEDDED, Dataset
from distill_jax.runtime import logging
from distill_jax.runtime.config_file import define_config
from distill_jax.runtime.registry import EVERYTHING, build, check_allowed
from distill_jax.sampling.codecs import read_codec
from distill_jax.sampling.loading import find_part
from distill_jax.sampling.student import Student


def define_flags() -> None:
    """Defines the flags --config and --data; not at import, because commands share flag names."""
    flags.disclaim_key_flags()  # So that the flags are key flags of the command that calls this.
    define_config("Config whose data to use.")
    flags.DEFINE_string(
        "data", None, "Use the data that the student's manifest names, which the message prints."
    )


def choose(student: Student, values: Any) -> Mapping[str, Any]:
    """Returns the options of the dataset, from --config or from the student's manifest.

    The manifest's dataset is used if it is part of the package, or if --data names the same.

    Args:
      student: the network that was trained on the data.
      values: the values of the flags.

    Raises:
      ValueError: when the user has to choose; for data of another shape or number of classes than
        the network's; for a dataset that would be imported and is not in --allow.
    """
    data = _chosen(student, values)
    dataset = build(DATASETS, "dataset", data, allow=EVERYTHING, makes=Dataset)
    shape, labels, classes = dataset.spec.x.shape, dataset.num_labels, student.num_classes
    codec, own = student.manifest.codec, student.image_shape
    if codec is not None:
        own = read_codec(find_part(student, codec))[1].x.shape
    if shape != own:
        raise ValueError(f"the data are of shape {shape}, the network's {own}")
    if labels > 1 and classes not in (0, labels):
        raise ValueError(f"the data have {labels} classes; the network was trained on {classes}")
    trained = student.manifest.lineage.data.get("fingerprint", "")
    found = dataset.summary.fingerprint if trained else ""
    if found != trained:
        logging.say(
            f"the data are not those that the network was trained on: their fingerprint is "
            f"{found or 'unknown'}, and was {trained}; classes may have other numbers"
        )
    return data


def named(data: Mapping[str, Any]) -> str:
    """Returns what a dataset's options name, such as a path, bucket or module, joined by commas."""
    given = {key: data[key] for key in sorted(data) if key != "name" or data[key] not in DATASETS}
    texts = [
        value if isinstance(value, str) else json.dumps(value)
        for value in given.values()
        if not isinstance(value, (bool, int, float, type(None)))
    ]
    return ",".join(texts) or data["name"]


def _chosen(student: Student, values: Any) -> Mapping[str, Any]:
    """Returns the options of the dataset that the user chose, unchecked."""
    data = student.manifest.data or {}
    if values.config is not None:
        return values.config.data.to_dict()
    name = data.get("name")
    if not isinstance(name, str):
        raise ValueError(
            "the manifest of this imported network names no data; name a config with its data, "
            "such as --config=configs/cifar10_guided.py --config.data.data_dir=DIR"
        )
    if values.data not in (None, named(data)):
        raise ValueError(
            f"--data={values.data} is not what {student.directory}/manifest.json names: "
            f"{json.dumps(data)[:1000]}; expected --data={shlex.quote(named(data))[:1000]}"
        )
    if name in EMBEDDED or values.data is not None:
        check_allowed([name], values.allow)
        return data
    raise ValueError(
        f"{student.directory}/manifest.json names data that are not in the package, and a manifest "
        f"may come from anybody: {json.dumps(data)[:1000]}. If you trust them, name them: "
        f"--data={shlex.quote(named(data))[:1000]}, or name others, such as "
        "--config=configs/cifar10_guided.py --config.data.data_dir=DIR"
    )
