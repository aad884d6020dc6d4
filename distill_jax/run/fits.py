"""Fits: what a run makes from its data before the first stage, and keeps: its codec."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_jax.data import Dataset
from distill_jax.data.encoded import Encoded
from distill_jax.diffusion.pixels import normalise
from distill_jax.runtime import distributed, logging
from distill_jax.runtime.files import absolute
from distill_jax.runtime.registry import build
from distill_jax.sampling.codecs import CODECS, Fitted, load_codec, read_codec
from distill_jax.sampling.loading import find_final
from distill_jax.storage import checkpoint

IMAGES = 10_000  # Of the training images that a codec is fitted to, at most.


@dataclasses.dataclass(frozen=True)
class CodecFit:
    """The codec of a run.

    Attributes:
      options: as in the config, {"name": an entry of CODECS, **options} or {"path": a directory}.
      directory: WORKDIR/codec, or that of the path.
      source: the dataset of images.
    """

    options: Mapping[str, Any]
    directory: epath.Path
    source: Dataset

    @property
    def finished(self) -> bool:
        """Whether it is complete on disk."""
        return (self.directory / "final" / "manifest.json").exists()

    @property
    def kind(self) -> Any:
        """The entry of CODECS, built."""
        if "path" in self.options:
            return read_codec(self.final)[0]
        return build(CODECS, "codec", self.options)

    @property
    def final(self) -> epath.Path:
        """Its final/."""
        return find_final(self.directory)

    @functools.cached_property
    def codec(self) -> Fitted:
        """The finished codec."""
        return load_codec(self.final)

    @property
    def dataset(self) -> Encoded:
        """The dataset of latents that the networks see; its batches need the finished codec."""
        spec = self.kind.latents(self.source.spec)
        return Encoded(self.source, spec, lambda images: self.codec.encode(images))

    def finish(self) -> bool:
        """Fits it and writes final/, unless that is done; returns whether there was anything to do.

        Raises:
          ValueError: where another codec was finished there, or one for other images.
        """
        if not distributed.broadcast_from_first(self.finished):
            images = jnp.asarray(normalise(self.source.images("train", IMAGES).x))
            params = self.kind.fit(np.asarray(images))
            manifest = {
                "stage": "codec",
                "codec": dict(self.options),
                "data": self.source.spec.to_json(),
            }
            checkpoint.save_final(self.directory / "final", params, manifest)
            error = np.abs(self.codec.decode(self.codec.encode(images)) - images).mean()
            logging.say(f"codec: fitted to {len(images):,} images, mean error {error:.4f} of 2")
            return True
        kind, data = read_codec(self.final)
        if (kind, data) != (self.kind, self.source.spec):
            raise ValueError(
                f"{self.final} is the codec {kind} for {data.x.shape}; the run asks for "
                f"{self.kind} for {self.source.spec.x.shape}: choose another --workdir"
            )
        return False


def codec_fit(options: Mapping[str, Any], workdir: epath.Path, source: Dataset) -> CodecFit | None:
    """The codec that `config.codec` names; None for pixels.

    Raises:
      KeyError: for an unknown name or option.
      ValueError: where the codec does not fit the data.
    """
    if not options:
        return None
    if "path" in options and options.keys() != {"path"}:
        raise ValueError(
            f"config.codec is {dict(options)}; expected a `path` only, of a finished codec, or a "
            f"`name` ({', '.join(CODECS)}) with its options"
        )
    directory = absolute(options["path"]) if "path" in options else workdir / "codec"
    fit = CodecFit(dict(options), directory, source)
    fit.kind.latents(source.spec)  # Refuses data that it does not fit.
    return fit
