"""Scores of images with their captions: CLIP score, PickScore and HPSv2, each a CLIP network."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_jax.evaluation.directories import tower_of
from distill_jax.models.clip_files import read_clip
from distill_jax.models.pretrained import digest_of
from distill_jax.runtime.registry import lookup
from distill_jax.runtime.sharding import Layout, make_layout
from distill_jax.sampling.tokenizer import Tokenizer, read_tokenizer
from distill_jax.typing import Tree

MAX_LOGIT_SCALE = 5.0  # CLIP's training keeps it below log(100) = 4.6.
BATCH = 64  # Number of images or captions of a compiled call.


class Kind(NamedTuple):
    """A score.

    Attributes:
      name: its name in tables.
      files: files of weights that come before the usual ones.
      convention: what the number is, for the protocol.
      value: function from cosines and exp(logit_scale) to the numbers.
    """

    name: str
    files: tuple[str, ...]
    convention: str
    value: Callable[[np.ndarray, float], np.ndarray]


KINDS = {
    "clip": Kind(
        "CLIP score", (), "100 max(cos, 0)", lambda cosines, scale: 100 * np.maximum(cosines, 0)
    ),
    "pickscore": Kind(
        "PickScore", (), "exp(logit_scale) cos", lambda cosines, scale: scale * cosines
    ),
    "hpsv2": Kind(
        "HPSv2",
        ("HPS_v2.1_compressed.pt", "HPS_v2_compressed.pt"),
        "100 cos",
        lambda cosines, scale: 100 * cosines,
    ),
}


@dataclasses.dataclass(frozen=True)
class Scorer:
    """A CLIP network that compares images with texts; it computes in float32.

    Attributes:
      kind: the score.
      network: name of the image tower, file and digest of the weights.
      side: side of the images that it takes.
      scale: exp(logit_scale).
      tokenizer: the tokenizer.
    """

    kind: Kind
    network: str
    side: int
    scale: float
    tokenizer: Tokenizer
    _image: Callable[[np.ndarray], np.ndarray] = dataclasses.field(repr=False)
    _text: Callable[[np.ndarray], np.ndarray] = dataclasses.field(repr=False)

    def images(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        """Returns embeddings of length 1, float32 (n, d), of images from 0 to 255.

        Args:
          batches: images (n, side, side, 3).
        """
        return np.concatenate([self._image(np.asarray(x, np.float32)) for x in batches])

    def texts(
        self, captions: Sequence[str], prefix: str = "", unescape: bool = False
    ) -> tuple[np.ndarray, list[str]]:
        """Returns embeddings of length 1 and the notes of what was cut, see Tokenizer."""
        ids, notes = self.tokenizer(captions, prefix, unescape)
        return self._text(ids), notes

    def scores(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Returns the score of each image with its text, float64 (n,), from embeddings."""
        cosines = np.sum(images.astype(np.float64) * texts.astype(np.float64), axis=1)
        return self.kind.value(cosines, self.scale)


def load_scorer(name: str, directory: epath.PathLike, layout: Layout | None = None) -> Scorer:
    """Loads a network that scores images with captions.

    Args:
      name: a key of KINDS.
      directory: its directory: config.json, weights and tokenizer of a CLIP as Hugging Face or
        OpenCLIP has them; for HPSv2 that of laion/CLIP-ViT-H-14-laion2B-s32B-b79K, into which
        HPS_v2.1_compressed.pt or HPS_v2_compressed.pt was put.
      layout: layout of the devices, which share a batch; None takes all devices.

    Raises:
      KeyError: for an unknown name.
      ModuleNotFoundError: if the tokenizer's library is not installed.
      ValueError: if a file is missing, damaged, or of another network.
    """
    kind = lookup(KINDS, "score", name)
    clip = read_clip(directory, kind.files)
    if kind.files and clip.file.name not in kind.files:
        raise ValueError(f"{clip.directory} has no weights of {kind.name}: {', '.join(kind.files)}")
    (image, of_image), (text, of_text) = clip.image(), clip.text()
    tokenizer = read_tokenizer(directory, text.options.max_position_embeddings)
    if tokenizer.largest >= text.options.vocab_size:
        raise ValueError(
            f"the tokenizer in {clip.directory} has the number {tokenizer.largest}, and the "
            f"network {text.options.vocab_size} tokens: they do not belong together"
        )
    if not text.projected or image.options.projection_dim != text.options.projection_dim:
        raise ValueError(f"{clip.directory} has not both towers of a CLIP with projections")
    scale = float(clip.state["logit_scale"].read(())) if "logit_scale" in clip.state else math.nan
    if not abs(scale) <= MAX_LOGIT_SCALE:
        raise ValueError(f"{clip.file}: logit_scale is {scale}; expected a number from -5 to 5")
    layout = layout or make_layout({"data": -1})
    shift, std = (255 * np.asarray(part, np.float32) for part in (clip.mean, clip.std))

    def of_pixels(variables: Tree, x: jax.Array) -> Any:
        return image.apply(variables, (x - shift) / std)

    def of_ids(variables: Tree, ids: jax.Array) -> Any:
        found: Any = text.apply(variables, ids)
        return found.embeds

    network = f"CLIP-{tower_of(image.options)}, {clip.file.name}@{digest_of(clip.file)[:8]}"
    return Scorer(
        kind,
        network,
        image.options.image_size,
        math.exp(scale),
        tokenizer,
        functools.partial(_embedded, _compiled(of_pixels, layout), layout.replicate(of_image)),
        functools.partial(_embedded, _compiled(of_ids, layout), layout.replicate(of_text)),
    )


def _compiled(function: Callable[[Tree, jax.Array], Any], layout: Layout) -> Any:
    """Returns a compiled function of variables and BATCH rows, with results of length 1."""

    def apply(variables: Tree, x: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            found = function(variables, layout.pad_and_shard(x))
        found /= jnp.linalg.norm(found, axis=-1, keepdims=True)
        return jax.lax.with_sharding_constraint(found, layout.replicated)

    return jax.jit(apply)


def _embedded(function: Any, variables: Tree, x: np.ndarray) -> np.ndarray:
    """Returns the embeddings of rows; every call has BATCH of them, and the last is padded."""
    found = []
    for start in range(0, len(x), BATCH):
        rows = x[start : start + BATCH]
        pads = [(0, BATCH - len(rows))] + [(0, 0)] * (x.ndim - 1)
        found.append(np.asarray(function(variables, np.pad(rows, pads)))[: len(rows)])
    return np.concatenate(found)
