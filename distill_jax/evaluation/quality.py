"""Scores of images against a reference: each a value, a standard error and its protocol."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from distill_jax.evaluation.feature_networks import FeatureNetwork
from distill_jax.evaluation.references import Reference
from distill_jax.metrics.frechet import Target
from distill_jax.metrics.kernel import cmmd, kid
from distill_jax.metrics.neighbours import neighbour_scores
from distill_jax.metrics.score import inception_score
from distill_jax.metrics.sliced import mind
from distill_jax.runtime import logging

GROUPS = 5  # Groups of the jackknife.
SPLITS = 10  # Splits of Inception Score.


class Score(NamedTuple):
    """A measured number.

    Attributes:
      value: the number.
      error: its standard error over the images, None if it is not estimated.
      protocol: everything that it depends on, as one line.
      remark: a warning about the number, or "".
    """

    value: float
    error: float | None
    protocol: str
    remark: str = ""

    def with_remark(self, text: str) -> "Score":
        """Returns the score with a further remark, which may be ""."""
        return self._replace(remark="; ".join(filter(None, (self.remark, text))))


def measure(
    batches: Iterable[np.ndarray],
    network: FeatureNetwork,
    reference: Reference,
    made: Mapping[str, object] | None = None,
    infinity: bool = False,
    unlike: bool = False,
) -> dict[str, Score]:
    """Measures images against a reference.

    The names are FID, sFID, IS, KID and MIND only in Inception's features; in other networks they
    are FD-<network>, KID-<network>, MIND-<network>, and with CLIP there is CMMD. Precision,
    recall, density and coverage have k = 3. Standard errors of distances are a jackknife over five
    groups of images.

    Args:
      batches: uint8 images (n, h, w, c), see FeatureNetwork.
      network: the feature network.
      reference: the reference, of the same network and resize.
      made: what made the images, for the protocol: such as sampler, w, seed, ema.
      infinity: whether to add the distance extrapolated to infinitely many images.
      unlike: whether a reference of other weights or another resize is taken; a remark then says
        what it was made with.

    Raises:
      ValueError: for another reference or too few images, and as FeatureNetwork.
    """
    other = reference.check(network, unlike)
    found = network(batches)
    pooled = found["pooled"]
    count, size = pooled.shape
    least = (4 if infinity else 2) * GROUPS
    if count < least:
        raise ValueError(f"{count} images are too few to measure; expected at least {least}")
    protocol = _protocol(network, reference, count, made or {}, bool(other))
    distance, few = network.distance, ""
    if count < 5 * size:
        few = (
            f"{count:,} images are few for {size:,} features: {distance} is biased upwards; "
            f"compare {network.named('MIND')}, or more images"
        )
    target = Target(reference.moments)
    value, error = target.distance(pooled), _jackknife(target.distance, pooled)
    scores = {distance: Score(value, error, protocol, few)}
    if infinity:
        value = target.distance_at_infinity(pooled)
        remark = f"extrapolated from {count:,} images to infinitely many"
        scores[f"{distance}-infinity"] = Score(value, None, protocol, remark)
    if "spatial" in found and (stored := reference.spatial) is not None:
        value = Target(stored).distance(found["spatial"])
        scores["sFID"] = Score(value, None, protocol, few)
    if network.is_fid:
        splits = min(SPLITS, count // 2)
        value, error = inception_score(found["logits"], splits)
        scores["IS"] = Score(value, error, f"{protocol}, splits {splits}")
    if reference.features.ndim == 2:
        _add_of_features(scores, network.named, pooled, reference.features, protocol)
        if name := network.kind.cmmd:
            unit = (
                x / np.linalg.norm(x, axis=1, keepdims=True) for x in (reference.features, pooled)
            )
            about = f"{protocol}, reference features {len(reference.features)}, sigma 10, x 1000"
            scores[name] = Score(cmmd(*unit), None, about)
    return {name: score.with_remark(other) for name, score in scores.items()}


def _protocol(
    network: FeatureNetwork,
    reference: Reference,
    count: int,
    made: Mapping[str, object],
    unlike: bool,
) -> str:
    """Returns what all scores of `count` images depend on."""
    facts = {
        "features": f"{network.name}@{network.digest[:8]}",
        "resize": network.resize,
        "images": "uint8",
        "reference": f"{reference.name}@{reference.fingerprint}",
        "split": reference.split or "unknown",
        "reference images": reference.num or "unknown",
        "n": count,
        **({"reference made with": reference.made_with} if unlike else {}),
        **made,
    }
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def scores_table(scores: Mapping[str, Score]) -> str:
    """Returns a Markdown table of scores, and a line with what all their protocols have."""
    common = min((score.protocol for score in scores.values()), key=len)
    rows = []
    for name, (value, error, protocol, _) in scores.items():
        spread = "" if error is None else f"{error:.2g}"
        rows.append([name, f"{value:.5g}", spread, protocol.removeprefix(common).lstrip(", ")])
    table = logging.table(["score", "value", "standard error", "also"], rows)
    return f"{table}\nprotocol: {common}"


def _add_of_features(
    scores: dict[str, Score],
    named: Callable[[str], str],
    pooled: np.ndarray,
    real: np.ndarray,
    protocol: str,
) -> None:
    """Adds the scores that compare features with features."""
    protocol = f"{protocol}, reference features {len(real)}"

    def apart(rows: np.ndarray) -> float:
        return mind(real, rows)[0]

    scores[named("MIND")] = Score(apart(pooled), _jackknife(apart, pooled), protocol)
    subset = min(1000, len(real), len(pooled))
    value, error = kid(real, pooled, size=subset)
    scores[named("KID")] = Score(value, error, f"{protocol}, subsets of {subset}")
    for name, share in neighbour_scores(real, pooled).items():
        over = len(real) if name in ("recall", "coverage") else len(pooled)
        spread = None if name == "density" else float(np.sqrt(share * (1 - share) / over))
        scores[name] = Score(share, spread, f"{protocol}, k 3")


def _jackknife(function: Callable[[np.ndarray], float], rows: np.ndarray) -> float:
    """Returns the standard error of a function of rows, from leaving out each of GROUPS groups."""
    groups = np.arange(len(rows)) % GROUPS
    found = np.asarray([function(rows[groups != i]) for i in range(GROUPS)])
    return float(np.sqrt((GROUPS - 1) * np.mean((found - found.mean()) ** 2)))
