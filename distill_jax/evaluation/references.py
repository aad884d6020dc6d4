"""References of distances: features of real images, with what they were computed with.

Besides our own files, those of ADM (VIRTUAL_*.npz), EDM (fid-refs), clean-fid and pytorch-fid are
read.
"""

import dataclasses
import hashlib
import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from distill_jax.evaluation.feature_networks import FeatureNetwork, read_npz
from distill_jax.metrics.frechet import Moments, Target, moments
from distill_jax.metrics.resizing import RESIZES
from distill_jax.runtime.files import absolute, replace
from distill_jax.runtime.text import plain

MAX_FEATURES = 10_000  # Number of features that are kept for neighbours, kernels and MIND.
TEXT = ("name", "split", "network", "digest", "resize")  # Fields that are strings in a file.
ADM = {"mu", "sigma", "mu_s", "sigma_s"}  # Names in the files of ADM's evaluator.


@dataclasses.dataclass(frozen=True)
class Reference:
    """Statistics of real images in a feature network.

    Attributes:
      name: name of the data.
      split: split of the data, "" if unknown.
      network: name of the feature network, see feature_networks.KINDS.
      digest: SHA-256 of the network's weights, "" if the file does not say it.
      resize: resize of the images, see metrics.resizing.
      num: number of images, 0 if unknown.
      moments: moments of their pooled features.
      spatial: moments of the spatial features for sFID; None without them.
      features: pooled features (n, d) of at most MAX_FEATURES images, () without them.
    """

    name: str
    split: str
    network: str
    digest: str
    resize: str
    num: int
    moments: Moments
    spatial: Moments | None = None
    features: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(()))

    @property
    def fingerprint(self) -> str:
        """The first eight digits of the SHA-256 of the moments."""
        parts = [np.ascontiguousarray(part, np.float64) for part in self.moments]
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:8]

    @property
    def made_with(self) -> str:
        """The network, weights and resize, as words."""
        return f"{self.network}, weights {self.digest[:8] or 'unknown'}, resize {self.resize}"

    def check(self, network: FeatureNetwork, unlike: bool = False) -> str:
        """Returns "" if the reference was made with this network, its weights and resize.

        Args:
          network: the network that measures images.
          unlike: whether others are taken; then a remark is returned that says what they were.

        Raises:
          ValueError: for another network or size of features, and without `unlike` also for other
            weights or another resize.
        """
        size = len(self.moments.mean)
        if size != network.size and self.network == network.name:
            raise ValueError(
                f"the reference {self.name} has {size:,} features, and {network.name} has "
                f"{network.size:,}: it was made with another network"
            )
        mine = (self.network, self.resize, self.digest or network.digest)
        if mine == (network.name, network.resize, network.digest):
            return ""
        measured = f"{network.name}, weights {network.digest[:8]}, resize {network.resize}"
        apart = (
            f"the reference {self.name} was made with {self.made_with}, and the images are "
            f"measured with {measured}"
        )
        if unlike and self.network == network.name:
            return f"{apart}: the number is comparable with none"
        raise ValueError(
            f"{apart}: the distance would mean nothing; make a reference with the same ones, "
            "measure with the reference's own --features and --resize, or accept it with --unlike"
        )

    def save(self, path: epath.PathLike) -> None:
        """Writes the reference to an .npz file, which read_reference reads."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in (*TEXT, "num")}
        arrays["mu"], arrays["sigma"] = self.moments
        if self.spatial is not None:
            arrays["mu_s"], arrays["sigma_s"] = self.spatial
        buffer = io.BytesIO()
        np.savez(buffer, features=self.features, **arrays)
        replace(absolute(path), buffer.getvalue())


def make_reference(
    name: str, split: str, batches: Iterable[np.ndarray], network: FeatureNetwork
) -> Reference:
    """Returns the reference of images.

    Args:
      name: name of the data.
      split: split of the data.
      batches: uint8 images (n, h, w, c), see FeatureNetwork.
      network: the feature network.

    Raises:
      ValueError: for fewer than two images, and as FeatureNetwork.
    """
    found = network(batches)
    pooled = found["pooled"]
    if len(pooled) < 2:
        raise ValueError(f"{name} has {len(pooled)} image in {split}; a reference needs two")
    kept = np.sort(np.random.default_rng(0).permutation(len(pooled))[:MAX_FEATURES])
    return Reference(
        name,
        split,
        network.name,
        network.digest,
        network.resize,
        len(pooled),
        moments(pooled),
        moments(found["spatial"]) if "spatial" in found else None,
        pooled[kept],
    )


def read_reference(
    path: epath.PathLike, network: FeatureNetwork, resize: str | None = None
) -> tuple[Reference, str]:
    """Reads a reference, and returns it with a remark for the user, which may be "".

    Args:
      path: an .npz file: our own, ADM's, or one with `mu` and `sigma`.
      network: the feature network; ADM's 10,000 images are measured with it.
      resize: the resize of a file that does not say it: "tf1" for EDM, "bilinear" for pytorch-fid,
        "bicubic" for clean-fid.

    Raises:
      ValueError: if the file is damaged or has no moments, or does not say the resize.
    """
    path = absolute(path)
    arrays = read_npz(path)
    if {"mu", "sigma"} - set(arrays):
        raise ValueError(f"{path} is no reference: it has {_named(arrays)}, and no mu and sigma")
    found = Moments(*(np.asarray(arrays[key], np.float64) for key in ("mu", "sigma")))
    _check(path, found)
    spatial = None
    if {"mu_s", "sigma_s"} <= set(arrays):
        spatial = Moments(*(np.asarray(arrays[key], np.float64) for key in ("mu_s", "sigma_s")))
        _check(path, spatial)
    if "digest" in arrays:
        return _ours(path, arrays, found, spatial), ""
    of_adm = set(arrays) >= ADM
    if resize is None and not of_adm:
        raise ValueError(
            f"{path} does not say how its images were resized; tell it with --reference_resize: "
            "tf1 for EDM's files, bilinear for pytorch-fid's, bicubic for clean-fid's"
        )
    resize = resize or "tf1"
    if resize not in RESIZES:
        raise ValueError(f"unknown resize {resize!r}; known: {', '.join(RESIZES)}")
    reference = Reference(path.name, "", "inception", "", resize, 0, found, spatial)
    images = arrays.get("arr_0")
    if images is None:
        return reference, ""
    features = network([images])["pooled"]
    apart = Target(found).distance(features)
    return dataclasses.replace(reference, features=features), (
        f"{path.name}: the FID of its own {len(images):,} images to its stored moments is "
        f"{apart:.2f}; the stored moments count, as in ADM's evaluator"
    )


def _ours(
    path: epath.Path, arrays: Mapping[str, Any], found: Moments, spatial: Moments | None
) -> Reference:
    """Returns the reference in a file of our own."""
    try:
        texts = {name: plain(str(arrays[name]), 200) for name in TEXT}
        num, features = int(arrays["num"]), np.asarray(arrays["features"], np.float32)
        if features.ndim and (features.ndim != 2 or features.shape[1:] != found.mean.shape):
            raise ValueError(f"features of shape {features.shape}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); make the reference again") from error
    return Reference(**texts, num=num, moments=found, spatial=spatial, features=features)


def _check(path: epath.Path, found: Moments) -> None:
    """Raises ValueError unless the moments are finite, of one size, and symmetric."""
    size = found.mean.shape
    if len(size) != 1 or found.covariance.shape != 2 * size:
        raise ValueError(
            f"{path}: mu is of shape {size} and sigma of {found.covariance.shape}; expected (d,) "
            "and (d, d)"
        )
    if not (np.isfinite(found.mean).all() and np.isfinite(found.covariance).all()):
        raise ValueError(f"{path}: its moments are not finite; make the reference again")
    if not np.allclose(found.covariance, found.covariance.T, rtol=1e-4, atol=1e-6):
        raise ValueError(f"{path}: sigma is not symmetric, so it is no covariance")


def _named(arrays: Mapping[str, Any]) -> str:
    names = sorted(arrays)
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "no arrays"
