"""Makes a reference for distances: features of the images of a dataset, with their protocol.

python -m distill_jax.reference --config=configs/digits_guided.py --features=efflite0 --out=ref.npz
python -m distill_jax.reference --images=photos --features=inception --out=ref.npz
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags

from distill_jax.data import DATASETS, Dataset
from distill_jax.diffusion.pixels import to_uint8
from distill_jax.evaluation import chosen_data, image_files
from distill_jax.evaluation.feature_networks import NAMES, load_network
from distill_jax.evaluation.protocols import MAX_REFERENCE_IMAGES, name_of
from distill_jax.evaluation.references import make_reference
from distill_jax.metrics.resizing import RESIZES
from distill_jax.runtime import logging
from distill_jax.runtime.app import needed, run_app
from distill_jax.runtime.files import absolute
from distill_jax.runtime.registry import EVERYTHING, build
from distill_jax.sampling import loading


def define_flags() -> None:
    """Defines the flags of the command; not at import, because commands share flag names."""
    loading.define_flags()
    flags.DEFINE_string("student", None, "A run whose data to use, see --data.")
    chosen_data.define_flags()
    flags.DEFINE_string("images", None, "Images instead: a folder of pictures, an .npz or an .npy.")
    flags.DEFINE_enum("split", "train", ["train", "test"], "Split of the dataset.")
    flags.DEFINE_integer("num", MAX_REFERENCE_IMAGES, "Largest number of images.", lower_bound=2)
    flags.DEFINE_string("features", None, f"Network of the features: {NAMES.expected}.")
    flags.DEFINE_enum("resize", None, RESIZES, "Resize of the images; the network's usual one.")
    flags.DEFINE_string("name", None, "Name of the data in protocols; by default their own.")
    flags.DEFINE_string("out", None, "The .npz file to write.")


def main() -> None:
    """Computes the features and writes --out."""
    values = flags.FLAGS
    out = absolute(needed("out", ": the .npz file to write"))
    features = needed("features", f": {NAMES.expected}")
    if out.suffix != ".npz":
        raise ValueError(f"--out={out} does not end in .npz")
    out.parent.mkdir(parents=True, exist_ok=True)
    network = load_network(features, method=values.resize)
    name, split, num, batches = _images(values)
    batches = logging.followed("features", batches, num)
    reference = make_reference(values.name or name, split, batches, network)
    reference.save(out)
    logging.say(
        f"{reference.name}, split {split or 'unknown'}, {reference.num:,} images as uint8, "
        f"features of {reference.made_with}: fingerprint {reference.fingerprint}, {out}"
    )


def _images(values: Any) -> tuple[str, str, int, Iterator[np.ndarray]]:
    """Returns the name, split and number of the images that the flags name, and the images."""
    if values.images is not None:
        if values.config is not None or values.student is not None:
            raise ValueError("--images are measured themselves; leave out --config and --student")
        images = image_files.read(absolute(values.images))
        return images.name, "", images.num, images.batches()
    if values.config is not None:
        data = values.config.data.to_dict()
    elif values.student is not None:
        student = loading.describe(values.student, None, loading.parts(values), values.allow)
        data = chosen_data.choose(student, values)
    else:
        raise ValueError("say which images: --config, --student (a run's data), or --images")
    dataset = build(DATASETS, "dataset", data, allow=EVERYTHING, makes=Dataset)
    x = dataset.images(values.split, values.num).x
    parts = (x[start : start + 1000] for start in range(0, len(x), 1000))
    batches = (part if part.dtype == np.uint8 else to_uint8(part) for part in parts)
    return name_of(data, dataset), values.split, len(x), batches


if __name__ == "__main__":
    define_flags()
    run_app(main)
