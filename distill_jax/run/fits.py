"""The codec of a run, which is fitted to the data and saved before the first stage."""

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

IMAGES = 10_000  # Largest number of training images that a codec is fitted to.


@dataclasses.dataclass(frozen=True)
class CodecFit:
    """The codec of a run, and the means to fit it.

    Attributes:
      options: the config's value, {"name": an entry of CODECS, **options} or {"path": directory}.
      directory: WORKDIR/codec, or the directory of the path.
      source: the dataset of images.
    """

    options: Mapping[str, Any]
    directory: epath.Path
    source: Dataset

    @property
    def finished(self) -> bool:
        """Whether the codec is complete on disk."""
        return (self.directory / "final" / "manifest.json").exists()

    @property
    def kind(self) -> Any:
        """The built entry of CODECS, before it is fitted."""
        if "path" in self.options:
            return read_codec(self.final)[0]
        return build(CODECS, "codec", self.options)

    @property
    def final(self) -> epath.Path:
        """The final/ directory of the codec."""
        return find_final(self.directory)

    @functools.cached_property
    def codec(self) -> Fitted:
        """The finished codec."""
        return load_codec(self.final)

    @property
    def dataset(self) -> Encoded:
        """The dataset of latents for the networks; its batches need the finished codec."""
        spec = self.kind.latents(self.source.spec)
        return Encoded(self.source, spec, lambda images: self.codec.encode(images))

    def finish(self) -> bool:
        """Fits the codec and writes final/ unless it is finished; returns whether it did so.

        Raises:
          ValueError: when the directory has another codec, or a codec for other images.
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
    """Returns the codec that `config.codec` names; None for pixels.

    Raises:
      KeyError: for an unknown name or option.
      ValueError: when the codec does not fit the data.
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
    fit.kind.latents(source.spec)  # Raises ValueError for data that the codec does not fit.
    return fit
