"""The input of a text into a small network, and the head that a text tower is fitted with."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.models.clip import ClipText, TextOptions
from distill_jax.models.layers import position_embedding


class Prompt(nn.Module):
    """One cross-attention from every place of an image to a text, and an MLP.

    In larger networks every block attends to the text; here the places attend once, at the input.

    Attributes:
      width: width of the places' tokens.
      heads: number of attention heads, a divisor of the width.
    """

    width: int
    heads: int

    @nn.compact
    def __call__(
        self, places: jax.Array, text: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns tokens (b, n, width) for the places, and one vector (b, width) for the text.

        Args:
          places: embedding of the places (n, d).
          text: tokens of the text (b, m, k).
          mask: (b, m), True for tokens that belong to the text; at least one is.
        """
        split = (self.heads, self.width // self.heads)
        text = nn.LayerNorm(name="norm_text")(text)
        q = nn.DenseGeneral(split, name="query")(
            jnp.broadcast_to(places, (len(text), *places.shape))
        )
        k, v = (nn.DenseGeneral(split, name=name)(text) for name in ("key", "value"))
        found = jax.nn.dot_product_attention(
            q, k, v, mask=mask[:, None, None], implementation="xla"
        )
        h = nn.Dense(self.width, name="input")(places)
        h = h + nn.DenseGeneral(self.width, axis=(-2, -1), name="proj")(found)
        y = nn.gelu(nn.Dense(2 * self.width, name="up")(nn.LayerNorm(name="norm")(h)))
        h = h + nn.Dense(self.width, name="down")(y)
        weight = mask[..., None] / mask.sum(axis=1)[:, None, None]
        return h, nn.Dense(self.width, name="pooled")((text * weight).sum(axis=1))


class MeanLatent(nn.Module):
    """A text tower with a head that predicts the mean latent of a caption.

    Attributes:
      options: options of the text tower.
      places: places along a side of the image.
      channels: values of a place.
    """

    options: TextOptions
    places: int
    channels: int

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns values (b, places places, channels) for token numbers and their mask, (b, n)."""
        width, heads = self.options.hidden_size, self.options.num_attention_heads
        text = ClipText(self.options, projected=False, name="text")(ids, mask).last
        at = np.arange(self.places, dtype=np.float32)
        places = jnp.asarray(position_embedding(at, at, width))
        h, _ = Prompt(width, heads, name="prompt")(places, text, mask)
        return nn.Dense(self.channels, name="output")(h)
