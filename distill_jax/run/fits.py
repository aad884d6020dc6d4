"""The codec and the text encoder of a run, fitted to the data before the first stage."""

import dataclasses
import functools
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import PartitionSpec

from distill_jax.data import Dataset
from distill_jax.data.encoded import Encoded
from distill_jax.data.masks import Masks, with_masks
from distill_jax.data.prompts import captions_of
from distill_jax.diffusion.inpainting import with_inpainting
from distill_jax.diffusion.pixels import normalise
from distill_jax.diffusion.spec import has_captions
from distill_jax.run.text_encoder import fit
from distill_jax.runtime import distributed, logging
from distill_jax.runtime.files import absolute
from distill_jax.runtime.registry import build
from distill_jax.runtime.sharding import Layout, make_layout
from distill_jax.sampling.codecs import CODECS, Fitted, draws, load_codec, moments, read_codec
from distill_jax.sampling.loading import find_final
from distill_jax.sampling.prompts import (
    CONDITIONERS,
    Pretrained,
    Text,
    load_conditioner,
    read_conditioner,
)
from distill_jax.storage import checkpoint
from distill_jax.typing import Image, Resized, Tree

BATCH = 256  # Images that a codec encodes at once.
CAPTIONS = 30_000  # Largest number of images and captions that a text encoder is fitted to.


@dataclasses.dataclass(frozen=True)
class Fit:
    """A part of a run that is fitted to the data before the first stage, and the means to do it.

    Attributes:
      options: the config's value, {"name": an entry of its table, **options} or {"path": directory}
        of a finished one.
      directory: its place in the workdir, or the directory of the path.
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
    def final(self) -> epath.Path:
        """Its final/ directory."""
        return find_final(self.directory)

    def release(self) -> None:
        """Frees the memory of the finished part; whoever needs it next loads it again."""
        for name, kept in vars(type(self)).items():
            if isinstance(kept, functools.cached_property):
                self.__dict__.pop(name, None)


def _place(options: Mapping[str, Any], key: str, known: Iterable[str], workdir: epath.Path) -> Any:
    """Returns the directory of a part: that of its path, or WORKDIR/key."""
    if "name" in options:
        return workdir / key
    if options.keys() != {"path"}:
        raise ValueError(
            f"config.{key} is {dict(options)}; expected a `path` only, of a finished {key}, or a "
            f"`name` ({', '.join(known)}) with its options"
        )
    return absolute(options["path"])


@dataclasses.dataclass(frozen=True)
class CodecFit(Fit):
    """The codec of a run."""

    @functools.cached_property
    def kind(self) -> Any:
        """The built entry of CODECS, before it is fitted."""
        if "name" not in self.options:
            return read_codec(self.final)[0]
        return build(CODECS, "codec", self.options)

    @functools.cached_property
    def codec(self) -> Fitted:
        """The finished codec."""
        return load_codec(self.final)

    @functools.cached_property
    def _placed(self) -> tuple[Layout, Tree]:
        """The layout of this process's devices, and the codec's parameters on each of them."""
        layout = make_layout({"data": -1}, jax.local_devices())
        return layout, layout.replicate(jax.device_get(self.codec.params))

    def moments(self, images: Image) -> Resized:
        """Encodes images for training, a part on each device of this process; see Fitted."""
        layout, params = self._placed
        if layout.ways == 1:
            return self.codec.moments(images)
        return in_shares(self.codec.kind, layout, params, images)

    def finish(self) -> bool:
        """Fits the codec and writes final/ unless it is finished; returns whether it did so.

        Every process fits the same, and the first one writes.

        Raises:
          ValueError: when the directory has another codec, or a codec for other images.
        """
        if not distributed.broadcast_from_first(self.finished):
            images = jnp.asarray(normalise(self.source.images("train", self.kind.images).x))
            params = self.kind.fit(np.asarray(images))
            manifest = {
                "stage": "codec",
                "codec": {**self.options, **dataclasses.asdict(self.kind.described())},
                "data": self.source.spec.to_json(),
            }
            checkpoint.save_final(self.directory / "final", params, manifest)
            few = images[:BATCH]
            error = np.abs(self.codec.decode(self.codec.encode(few)) - few).mean()
            logging.say(f"codec: finished with {len(images):,} images, mean error {error:.4f} of 2")
            return True
        kind, data = read_codec(self.final)
        if (kind, data) != (self.kind.described(), self.source.spec):
            raise ValueError(
                f"{self.final} is the codec {kind} for {data.x.shape}; the run asks for "
                f"{self.kind} for {self.source.spec.x.shape}: choose another --workdir"
            )
        return False


@functools.partial(jax.jit, static_argnums=(0, 1))
def on_devices(kind: Any, layout: Layout, params: Tree, images: Image) -> Resized:
    """Encodes a sharded batch of images; each device takes its own, part by part if need be."""
    batch = layout.batch.spec
    encode = jax.shard_map(
        functools.partial(moments, kind),
        mesh=layout.mesh,
        in_specs=(PartitionSpec(), batch),
        out_specs=batch,
        check_vma=False,
    )
    return encode(params, images)


@functools.partial(jax.jit, static_argnums=(0, 1))
def in_shares(kind: Any, layout: Layout, params: Tree, images: Image) -> Resized:
    """Encodes any number of images, of which each device takes a share."""
    return layout.unpad(on_devices(kind, layout, params, layout.pad_and_shard(images)), len(images))


@dataclasses.dataclass(frozen=True)
class ConditionerFit(Fit):
    """The text encoder of a run.

    Attributes:
      codec: the codec of the run; None for pixels.
    """

    codec: CodecFit | None

    @functools.cached_property
    def kind(self) -> Any:
        """The built entry of CONDITIONERS, before it is fitted."""
        if "name" not in self.options:
            return read_conditioner(self.final)[0]
        return build(CONDITIONERS, "conditioner", self.options)

    @functools.cached_property
    def conditioner(self) -> Text:
        """The finished conditioner."""
        return load_conditioner(self.final)

    def finish(self, stop: Callable[[], bool]) -> bool:
        """Fits the text encoder and writes final/ unless it is finished; returns whether it did.

        Every process fits the same, and the first one writes.

        Raises:
          InterruptedError: if `stop`, which is polled between updates, returns true.
          ValueError: when the directory has another text encoder.
        """
        if not distributed.broadcast_from_first(self.finished):
            began = time.monotonic()
            if isinstance(self.kind, Pretrained):
                self._keep(self.kind)
                return True
            images = normalise(self.source.images("train", CAPTIONS).x)
            captions = captions_of(self.source, "train", CAPTIONS)
            if self.codec is not None:
                parts = np.split(images, range(BATCH, len(images), BATCH))
                encode = self.codec.codec.encode
                images = np.concatenate([encode(jnp.asarray(part)) for part in parts])
            words = sorted({word for caption in captions for word in caption.lower().split()})
            params = fit(self.kind, captions, images, words, stop)
            manifest = {
                "stage": "conditioner",
                "conditioner": dict(self.options),
                "words": words,
            }
            checkpoint.save_final(self.directory / "final", params, manifest)
            logging.say(
                f"conditioner: fitted to {len(captions):,} captions of {len(words):,} words in "
                f"{time.monotonic() - began:.0f} s"
            )
            return True
        kind, _ = read_conditioner(self.final)
        if kind != (asked := self.kind.described()):
            raise ValueError(
                f"{self.final} is the text encoder {kind}; the run asks for {asked}: choose "
                "another --workdir"
            )
        return False

    def _keep(self, kind: Pretrained) -> None:
        """Writes the final/ of a published text encoder."""
        params, vocabulary = kind.read()
        known = kind.described()
        manifest = {
            "stage": "conditioner",
            "conditioner": {**self.options, **dataclasses.asdict(known)},
            "tokenizer": vocabulary,
            # Its fingerprint, because arrays that are not read yet are not read twice.
            "arrays": zlib.crc32(f"{known.model} {known.weights}".encode()),
        }
        checkpoint.save_final(self.directory / "final", params, manifest)
        logging.say(f"conditioner: read from {kind.path}")


def conditioner_fit(
    options: Mapping[str, Any], workdir: epath.Path, source: Dataset, codec: CodecFit | None
) -> ConditionerFit | None:
    """Returns the text encoder that `config.conditioner` names; None for data without captions.

    Raises:
      KeyError: for an unknown name or option.
      ValueError: for captions without a text encoder, and for the reverse.
    """
    if not options:
        if has_captions(source.spec):
            raise ValueError(
                "the data have captions, and config.conditioner is empty; expected a text encoder, "
                f"a `name` ({', '.join(CONDITIONERS)}) with its options, or a `path`"
            )
        return None
    directory = _place(options, "conditioner", CONDITIONERS, workdir)
    made = ConditionerFit(dict(options), directory, source, codec)
    made.kind.conditions(source.spec)  # Raises ValueError for data without captions.
    return made


def encoded(
    source: Dataset,
    codec: CodecFit | None,
    conditioner: ConditionerFit | None,
    masks: Masks | None = None,
) -> Dataset:
    """Returns the dataset for the networks; its batches need the finished codec and encoder.

    Raises:
      ValueError: for masks of data without images.
    """
    spec, encode, condition = source.spec, None, None
    if masks is not None:
        source = with_masks(source, masks)
    if codec is None and conditioner is None:
        return source
    if codec is not None:
        spec = codec.kind.latents(spec)

        def encode(images: Image) -> Resized:
            return codec.moments(images)

    if conditioner is not None:
        spec = conditioner.kind.conditions(spec)

        def condition(captions: np.ndarray) -> dict[str, np.ndarray]:
            return conditioner.conditioner(captions, len(captions))

    if masks is not None:
        spec = with_inpainting(spec)
    return Encoded(source, spec, encode, condition, moments=codec is not None and draws(codec.kind))


def codec_fit(options: Mapping[str, Any], workdir: epath.Path, source: Dataset) -> CodecFit | None:
    """Returns the codec that `config.codec` names; None for pixels.

    Raises:
      KeyError: for an unknown name or option.
      ValueError: when the codec does not fit the data.
    """
    if not options:
        return None
    directory = _place(options, "codec", CODECS, workdir)
    made = CodecFit(dict(options), directory, source)
    made.kind.latents(source.spec)  # Raises ValueError for data that the codec does not fit.
    return made
