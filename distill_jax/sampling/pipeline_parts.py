"""The autoencoder and the text encoder in a pipeline of diffusers, for a network read from it."""

from collections.abc import Iterable, Mapping

import numpy as np
from etils import epath

from distill_jax.diffusion.spec import DataSpec, Leaf, caption_data
from distill_jax.models.text_compositions import CONDITIONS
from distill_jax.sampling.autoencoder import Autoencoder
from distill_jax.sampling.codecs import Fitted
from distill_jax.sampling.prompts import Pretrained, Text


def is_pipeline(directory: epath.Path) -> bool:
    """Returns whether a directory has the folder of an autoencoder of diffusers."""
    return (directory / "vae").is_dir()


def read_parts(
    directories: Iterable[epath.Path], spec: DataSpec
) -> tuple[Fitted, Text | None] | None:
    """Returns codec and conditioner from the first pipeline among directories; None without one.

    Args:
      directories: pipelines, and directories of other kinds.
      spec: spec of the network; without a text the conditioner is None.

    Raises:
      ValueError: for parts that are missing, damaged, or do not fit the network.
    """
    folder = next(filter(is_pipeline, directories), None)
    if folder is None:
        return None
    codec, (height, width, channels) = Autoencoder(str(folder)), spec.x.shape
    layers = codec.layers
    if spec.bounded or layers.channels != channels:
        raise ValueError(
            f"{folder} has latents of {layers.channels} channels, and the network takes "
            f"{'images' if spec.bounded else 'latents'} of {channels}: expected its own pipeline"
        )
    images = caption_data((height * layers.factor, width * layers.factor, 3))
    fitted = Fitted(codec.described(), codec.fit(np.zeros((0, 1, 1, 3))), images)
    return fitted, _text(folder, spec)


def _text(folder: epath.Path, spec: DataSpec) -> Text | None:
    """Returns the conditioner of a pipeline; None for a network without a text."""
    wanted = {name: leaf for name, leaf in spec.cond if name in CONDITIONS}
    if "text" not in wanted:
        return None
    kind = Pretrained(str(folder))
    # The number of tokens that the pipeline takes, and what the network takes beyond it.
    more = wanted["text"].shape[0] - kind.encoder.leaves["text"].shape[0]
    if more:
        kind = Pretrained(str(folder), kind.encoder.length + more)
    if (found := kind.encoder.leaves) != wanted:
        theirs, ours = (_shown(leaves) for leaves in (found, wanted))
        raise ValueError(
            f"{folder} has {theirs}, and the network takes {ours}: expected its own pipeline"
        )
    return kind.text()


def _shown(leaves: Mapping[str, Leaf]) -> str:
    return ", ".join(f"{name} of shape {leaf.shape}" for name, leaf in leaves.items())
