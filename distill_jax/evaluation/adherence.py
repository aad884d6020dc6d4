"""Adherence to prompts: how often pictures of shapes show what their captions say; see scenes."""

import jax.numpy as jnp
import numpy as np

from distill_jax.data import Dataset, scenes
from distill_jax.data.prompts import as_array, captions_of
from distill_jax.data.shapes import seen
from distill_jax.diffusion.pixels import normalise, to_uint8
from distill_jax.evaluation.base import SAMPLED, Evaluator, Row
from distill_jax.sampling.codecs import Codec

ATTRIBUTES = ("colour", "shape", "relation", "count", "all")
REPEATED = 10  # Captions that are drawn several times, for the spread.


class ScenesEvaluator(Evaluator):
    """The evaluator of the shapes dataset: what the reader of scenes sees in the pictures.

    Its distance is the fraction of pictures with anything wrong. The floors are those of test
    pictures, of test pictures that a codec has encoded and decoded, and of test pictures with the
    captions of others, which is chance.
    """

    name, unit = "wrong", "pixels, as l2,"
    real_recall = 1.0

    def __init__(self, dataset: Dataset):
        x = self._x = dataset.images("test", 1000).x
        shown = self._shown = [scenes.parse(text) for text in captions_of(dataset, "test", 1000)]
        others = shown[1:] + shown[:1]
        self.images = len(x)
        train, texts = dataset.images("train", SAMPLED).x, captions_of(dataset, "train", SAMPLED)
        self._keep_real(train, self._features(train), as_array(texts))
        self.floor = {
            "test": float(1 - scenes.read(x, shown).all.mean()),
            "chance": float(1 - scenes.read(x, others).all.mean()),
        }

    def with_codec(self, codec: Codec) -> dict[str, float]:
        latents = codec.encode(jnp.asarray(normalise(self._x)))
        x = to_uint8(np.asarray(codec.decode(latents)))
        return {"codec": float(1 - scenes.read(x, self._shown).all.mean())}

    @staticmethod
    def prompts(num: int) -> list[str]:
        """Returns fixed prompts for `num` pictures.

        The first three fifths are scenes of the training captions, one in four of one object. A
        fifth has pairs that are held out of training, and the last repeats REPEATED captions.
        """
        rng = np.random.default_rng(2)
        known, new = seen(), [scene for scene in scenes.all_scenes() if scene.held_out]
        singles = sum(len(scene.objects) == 1 for scene in known)
        repeated = [known[i] for i in rng.integers(singles, len(known), size=REPEATED)]
        few = num // 5
        many = num - 2 * few
        one = rng.integers(singles, size=many)
        two = rng.integers(singles, len(known), size=many)
        chosen = [known[i] for i in np.where(rng.random(many) < 0.25, one, two)]
        chosen += [new[i] for i in rng.integers(len(new), size=few)]
        chosen += [repeated[i % REPEATED] for i in range(few)]
        return [scene.caption for scene in chosen]

    def _features(self, x: np.ndarray) -> np.ndarray:
        flat = normalise(x).reshape(len(x), -1)
        return flat / np.sqrt(flat.shape[1])

    def _measure(
        self,
        x: np.ndarray,
        features: np.ndarray,
        label: np.ndarray | None,
        target: np.ndarray | None,
    ) -> Row:
        asked = [scenes.parse(text) for text in label]  # type: ignore[union-attr]  # The prompts.
        found = scenes.read(to_uint8(x), asked)
        few = len(x) // 5
        many = len(x) - 2 * few
        one = np.array([len(scene.objects) == 1 for scene in asked[:many]])
        right = found.all[:many]
        row: Row = {self.name: float(1 - right.mean())}
        for name in ATTRIBUTES:
            row[name] = float(getattr(found, name)[:many].mean())
        new = found.all[many : many + few]
        parts = {"one object": right[one], "two objects": right[~one], "held-out pairs": new}
        row.update(
            {f"all, {name}": float(part.mean()) for name, part in parts.items() if len(part)}
        )
        row["spread"] = _spread(found.centre[many + few :])
        if target is not None:
            row["PSNR"] = float(10 * np.log10(4 / max(np.mean((x - target) ** 2), 1e-12)))
        return row


def _spread(centre: np.ndarray) -> float:
    """Returns the standard deviation of the first object's place in pixels, for one caption.

    Args:
      centre: middles (n, 2) of pictures whose captions take turns; nan where there is no object.
    """
    groups = [centre[i::REPEATED] for i in range(REPEATED)]
    there = [group[np.isfinite(group).all(axis=1)] for group in groups]
    variances = [group.var(axis=0) for group in there if len(group) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else 0.0
