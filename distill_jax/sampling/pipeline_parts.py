"""The autoencoder and the text encoder in a pipeline of diffusers, for a network read from it."""

from collections.abc import Iterable

import numpy as np
from etils import epath

from distill_jax.diffusion.spec import DataSpec, caption_data
from distill_jax.sampling.autoencoder import Autoencoder
from distill_jax.sampling.codecs import Fitted
from distill_jax.sampling.prompts import Pretrained, Text

FOLDERS = ("vae", "text_encoder")


def is_pipeline(directory: epath.Path) -> bool:
    """Returns whether a directory has the folders of an autoencoder and of a text encoder."""
    return all((directory / name).is_dir() for name in FOLDERS)


def read_parts(directories: Iterable[epath.Path], spec: DataSpec) -> tuple[Fitted, Text] | None:
    """Returns codec and conditioner of the first pipeline among directories; None without one.

    Args:
      directories: pipelines, and directories of other kinds.
      spec: spec of the network, with latents and the tokens of a text.

    Raises:
      ValueError: for parts that are missing, damaged, or do not fit the network.
    """
    folder = next(filter(is_pipeline, directories), None)
    if folder is None:
        return None
    text = dict(spec.cond).get("text")
    if text is None or spec.bounded:
        raise ValueError(f"{folder} is a pipeline, and the network takes no latents and text")
    codec, conditioner = Autoencoder(str(folder)), Pretrained(str(folder), text.shape[0])
    height, width, _ = spec.x.shape
    images = caption_data((height * codec.layers.factor, width * codec.layers.factor, 3))
    latent = codec.latents(images).x.shape
    words = dict(conditioner.conditions(images).cond)["text"].shape
    if (latent, words) != (spec.x.shape, text.shape):
        raise ValueError(
            f"{folder} has latents {latent} and texts {words}; the network takes {spec.x.shape} "
            f"and {text.shape}: expected the pipeline that it was read from"
        )
    fitted = Fitted(codec.described(), codec.fit(np.zeros((0, 1, 1, 3))), images)
    params, vocabulary = conditioner.read()
    return fitted, conditioner.described().load(params, vocabulary)
