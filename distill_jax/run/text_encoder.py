"""The fit of a small text encoder to the captions and latents of a dataset."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distill_jax.models.prompt import MeanLatent
from distill_jax.runtime import heartbeat
from distill_jax.sampling.prompts import WordEncoder, mask_of
from distill_jax.sampling.tokenizer import word_tokenizer
from distill_jax.typing import Tree

PLACES = 4  # Along a side of the image.


def fit(
    kind: WordEncoder,
    captions: Sequence[str],
    latents: np.ndarray,
    words: Sequence[str],
    stop: Callable[[], bool] = lambda: False,
) -> Tree:
    """Returns the parameters of a text tower that is fitted to captions and latents.

    It learns the mean latent of every caption, mean squared error, by a head that is dropped. Its
    targets are the means over the images of a caption, which have the same minimum and less noise
    than single images. The result depends on the arguments only, so every process of a run computes
    the same.

    Args:
      kind: options of the text tower and of the fit.
      captions: captions (n,).
      latents: latents (n, h, w, c) of their images.
      words: the vocabulary.
      stop: function that is polled between updates.

    Raises:
      InterruptedError: if `stop` returns true; the fit then begins again.
      ValueError: for latents whose sides PLACES does not divide.
    """
    tokenizer = word_tokenizer(words, kind.length)
    names, targets, share = _means(captions, _places(latents))
    ids = tokenizer(names)[0]
    mask = mask_of(ids, tokenizer.end)
    module = MeanLatent(kind.options(words), PLACES, targets.shape[-1])
    params = jax.jit(module.init)(jax.random.key(0), ids[:1], mask[:1])["params"]
    rate = optax.linear_schedule(kind.learning_rate, 0.0, kind.updates)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    state, rng = tx.init(params), np.random.default_rng(0)
    for update in range(kind.updates):
        if stop():
            raise InterruptedError(
                f"stopped after {update:,} of {kind.updates:,} updates of the text encoder, which "
                "begins again"
            )
        heartbeat.beat()
        rows = rng.choice(len(ids), size=kind.batch, p=share)
        batch = ids[rows], mask[rows], targets[rows]
        params, state = _update(module, tx, params, state, *batch)
    return jax.device_get(params["text"])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _update(
    module: MeanLatent,
    tx: optax.GradientTransformation,
    params: Tree,
    state: optax.OptState,
    ids: jax.Array,
    mask: jax.Array,
    targets: jax.Array,
) -> tuple[Tree, optax.OptState]:
    """Returns the parameters and optimizer state after one update."""

    def loss(params: Tree) -> jax.Array:
        found: Any = module.apply({"params": params}, ids, mask)
        return jnp.mean((found - targets) ** 2)

    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


def _means(
    captions: Sequence[str], targets: np.ndarray
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Returns the different captions, the means (m, ...) of their targets, and their shares."""
    names, which, count = np.unique(np.array(captions), return_inverse=True, return_counts=True)
    total = np.zeros((len(names), *targets.shape[1:]), np.float32)
    np.add.at(total, which, targets)
    return names.tolist(), total / count[:, None, None], count / len(captions)


def _places(latents: np.ndarray) -> np.ndarray:
    """Returns latents (n, h, w, c) as (n, PLACES PLACES, values of a place)."""
    n, height, width, c = latents.shape
    if height % PLACES or width % PLACES:
        raise ValueError(
            f"latents are {height}x{width}; the text encoder is fitted to sides that {PLACES} "
            "divides"
        )
    tiles = latents.reshape(n, PLACES, height // PLACES, PLACES, width // PLACES, c)
    return np.ascontiguousarray(tiles.swapaxes(2, 3)).reshape(n, PLACES**2, -1)
