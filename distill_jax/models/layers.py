"""Layers and policies that all networks share."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion.denoiser import Network
from distill_jax.models import adapters
from distill_jax.runtime.options import number
from distill_jax.runtime.trees import is_stacked, is_vector, name_of
from distill_jax.typing import Cond, Image, Output, Time, Tree

zeros = nn.initializers.zeros_init()
DTYPES = ("float32", "bfloat16")
ATTENTION_KERNELS = ("auto", "xla", "cudnn")


def _dots(primitive: Any, *_: Any, **params: Any) -> bool:
    """Returns whether a result is stored: of convolutions and products with weights, not q k^T."""
    if primitive is jax.lax.conv_general_dilated_p:
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *_, **params)


# Policies for the activations that blocks store for the backward pass, which recomputes the others.
REMAT = {
    "none": None,
    "dots": _dots,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def remat(block: type[nn.Module], policy: str) -> type[nn.Module]:
    """Returns the block with a policy of REMAT: "none", "dots" or "full".

    "none" stores all activations, "dots" the results of convolutions and of products with weights,
    "full" only the inputs of the blocks.
    """
    return block if REMAT[policy] is None else nn.remat(block, policy=REMAT[policy])


def stacked(block: type[nn.Module], policy: str, length: int, first: int) -> type[nn.Module]:
    """Returns a module that scans over the first of `length` equal blocks.

    The layers are the leading axis of every parameter, and the module is named block[0:length], as
    Layout expects. A program therefore contains one block for any number of blocks, and gathers
    the weights of one block at a time, see models.sharded. The policy "none" stores the gathered
    weights for the backward pass.

    Args:
      block: module that is called with (h, an input of all blocks) and returns (h, None).
      policy: a name in REMAT, see `remat`.
      length: number of blocks with parameters.
      first: number of blocks to call, from the first.
    """
    if REMAT[policy] is not None:  # In a scan the compiler cannot merge the two passes.
        block = nn.remat(block, policy=REMAT[policy], prevent_cse=False)
    kinds = ("params", "adapters")
    blocks = nn.scan(
        block,
        variable_axes=dict.fromkeys(kinds, 0),
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=first,
    )
    if first == length:
        return blocks
    return nn.map_variables(blocks, kinds, lambda tree: jax.tree.map(lambda x: x[:first], tree))


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, kernel: str, mask: jax.Array | None = None
) -> jax.Array:
    """Returns softmax(q k^T / sqrt(head_dim)) v; q, k, v are (b, tokens, heads, head_dim).

    The products q k^T and the softmax are float32 in every dtype.

    Args:
      q: queries.
      k: keys.
      v: values.
      kernel: a name in ATTENTION_KERNELS. "cudnn" is flash attention (Dao et al. 2022,
        arXiv:2205.14135), which never stores q k^T. "auto" selects it if the device and the shapes
        allow. Devices other than NVIDIA's GPUs always use XLA's, so a network runs everywhere.
      mask: (b, tokens of k), True for tokens that all queries attend to; None for all tokens.

    Raises:
      ValueError: for "cudnn" on a GPU where cuDNN has no kernel for these arrays.
    """
    seen = None if mask is None else mask[:, None, None].astype(bool)
    if kernel == "auto" and jax.devices()[0].platform == "cpu":
        return _divided_last(q, k, v, seen)
    capability = re.fullmatch(r"\d+\.\d+", getattr(jax.devices()[0], "compute_capability", ""))
    if capability is None or kernel == "xla":
        return jax.nn.dot_product_attention(q, k, v, mask=seen, implementation="xla")
    fits = has_flash_attention(float(capability[0]), q.dtype, q.shape[-1])
    if kernel == "cudnn" and not fits:
        raise ValueError(
            f"attention_kernel is 'cudnn', which has no kernel for {q.dtype} and heads of "
            f"{q.shape[-1]} channels on compute capability {capability[0]}; take 'auto', or "
            "bfloat16 and heads of a multiple of 8 channels up to 128 on 8.0 or newer"
        )
    return jax.nn.dot_product_attention(
        q, k, v, mask=seen, implementation="cudnn" if fits else "xla"
    )


def _divided_last(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array | None) -> jax.Array:
    """Returns `attention` with the softmax's division after the product with v.

    That division is by (tokens, head_dim) instead of (tokens, tokens), and the products are of
    arrays (b, heads, tokens, head_dim): on a CPU it takes two thirds of the time. Other devices
    fuse the softmax.
    """
    scale = q.shape[-1] ** -0.5
    q, k, v = (jnp.swapaxes(each, 1, 2) for each in (q, k, v))
    logits = jnp.einsum("bnth,bnsh->bnts", q, k, preferred_element_type=jnp.float32)
    if seen is not None:
        logits = jnp.where(seen, logits, jnp.finfo(logits.dtype).min / 2)
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.exp(scale * (logits - largest))
    y = jnp.einsum("bnts,bnsh->bnth", weights.astype(v.dtype), v)
    y = y / weights.sum(axis=-1, keepdims=True)
    return jnp.swapaxes(y, 1, 2).astype(v.dtype)


def has_flash_attention(capability: float, dtype: jnp.dtype, head_dim: int) -> bool:
    """Returns whether cuDNN has flash attention for a GPU of this compute capability.

    NVIDIA's support matrix of fused attention: half precision from Ampere (8.0) on, heads of a
    multiple of 8 and at most 128 channels (256 from Hopper, 9.0, on).
    """
    widest = 256 if capability >= 9 else 128
    half = dtype in (jnp.bfloat16, jnp.float16)
    return capability >= 8 and half and head_dim % 8 == 0 and head_dim <= widest


def sinusoid(u: Time, dim: int) -> jax.Array:
    """Returns [sin(1000 u f_k), cos(1000 u f_k)], f_k from 1 to 1e-4: (b,) -> (b, dim), dim even.

    Vaswani et al. (2017, arXiv:1706.03762), section 3.5, with the order and frequencies of the
    released code of Salimans & Ho (2022); u is in [0, 1].
    """
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half) / (half - 1))
    angle = 1000.0 * u[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def cosines_and_sines(u: Time, dim: int, shift: int = 0) -> jax.Array:
    """Returns [cos(u f_k), sin(u f_k)], f_k = 10000^(-k / (dim / 2 - shift)): (b,) -> (b, dim).

    Order and frequencies are those of Dhariwal & Nichol's networks, and of diffusers.

    Args:
      u: numbers to embed.
      dim: number of channels, even.
      shift: the frequencies end at 1e-4 with 1, and before it with 0.
    """
    half = dim // 2
    # Exponents are rounded as in PyTorch, because rounding changes angles of 1000 by 4e-5.
    exponents = np.float32(-math.log(10000.0)) * np.arange(half, dtype=np.float32)
    exponents /= np.float32(half - shift)
    angle = u[:, None] * np.exp(exponents.astype(np.float64)).astype(np.float32)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def position_embedding(rows: np.ndarray, columns: np.ndarray, width: int) -> np.ndarray:
    """Returns the fixed 2-D sine-cosine embedding of all (row, column), width divisible by 4.

    Returns:
      (len(rows) * len(columns), width).
    """
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    y, x = np.meshgrid(rows, columns, indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (y, x)]
    parts = [function(angle) for angle in angles for function in (np.sin, np.cos)]
    return np.concatenate(parts, axis=-1).astype(np.float32)


TIME_SCALE = number(0, 1e4, without=(0,))


class Conditioning(nn.Module):
    """The sum of the embeddings of time and conditions, one vector per example.

    It embeds the keys of `cond`. A network with "w" has the parameters of one without it, and those
    of `w_embed`; see `with_numbers`.

    Attributes:
      width: width of the vector.
      num_classes: number of classes; labels are 0 .. num_classes - 1, and null is num_classes.
      w_scale: the w whose embedding is that of t = 1; larger w are allowed.
      time_scale: largest angle in the embedding of the time, see `sinusoid`.
    """

    width: int
    num_classes: int
    w_scale: float = 4.0
    time_scale: float = 1000.0

    @nn.compact
    def __call__(self, t: Time, cond: Cond) -> jax.Array:
        emb = nn.Dense(self.width, name="t_embed_0")(
            sinusoid(t * (self.time_scale / 1000.0), self.width)
        )
        emb = nn.Dense(self.width, name="t_embed_1")(nn.swish(emb))
        if "label" in cond:
            emb += nn.Embed(self.num_classes + 1, self.width, name="label_embed")(cond["label"])
        return with_numbers(emb, cond, self.w_scale)


class ZeroEmbedding(nn.Module):
    """The embedding of a number in [0, scale], like the time's, whose last layer starts at zero."""

    width: int
    scale: float

    @nn.compact
    def __call__(self, number: Time) -> jax.Array:
        emb = nn.swish(nn.Dense(self.width)(sinusoid(number / self.scale, self.width)))
        return nn.Dense(self.width, kernel_init=zeros)(emb)


def with_numbers(emb: jax.Array, cond: Cond, w_scale: float) -> jax.Array:
    """Adds to `emb` the embeddings of the inputs that students have and teachers lack.

    These are `w_embed` of the guidance strength cond["w"], and `target_embed` of cond["target"]:
    the time in [0, 1] of the output of a network whose input is always pure noise (Gu et al. 2023,
    arXiv:2306.05544). Both start at zero, so a student with a teacher's weights equals the teacher
    before training (Meng et al. 2023, section 3.1), at every w and for every target.

    Args:
      emb: embedding (b, width) of the time and the label.
      cond: conditions of the network.
      w_scale: the w whose embedding is that of t = 1.
    """
    for name, scale in (("w", w_scale), ("target", 1.0)):
        if name in cond:
            emb += ZeroEmbedding(emb.shape[-1], scale, name=f"{name}_embed")(cond[name])
    return emb


def modulate(h: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns h (1 + scale) + shift, as in adaLN (Peebles & Xie 2023, arXiv:2212.09748)."""
    return h * (1 + scale) + shift


def check_halvings(sides: tuple[int, ...], halvings: int) -> None:
    """Raises ValueError unless `halvings` can halve both sides of an image, (h, w)."""
    if sides[0] % 2**halvings or sides[1] % 2**halvings:
        raise ValueError(
            f"the image is {sides[0]}x{sides[1]}; this unet halves its sides {halvings} times, so "
            f"expected multiples of {2**halvings}"
        )


def as_network(module: nn.Module, features: bool = False, policy: str = "none") -> Network:
    """Returns the Network of a Linen module that is called with (z, t, cond).

    Dropout in the module must be active exactly when there is a "dropout" stream (`self.has_rng`).

    Args:
      module: the network.
      features: whether the module sows "middle", (b, positions, channels), into the collection
        "features". Only `features` of the Network computes it, without the rest of the network.
      policy: policy of the unrolled blocks, see `remat`. With "full", for the least memory,
        gradients are summed layer by layer, see sharded.Sharded; a scan always does that.
    """

    def init(key: jax.Array, z: Image, t: Time, cond: Cond) -> Tree:
        return module.init(key, z, t, cond)["params"]

    def apply(params: Tree, z: Image, t: Time, cond: Cond, key: jax.Array | None = None) -> Output:
        rngs = {} if key is None else {"dropout": key}
        return adapters.call(module, params, z, t, cond, rngs=rngs)

    def middle(params: Tree, z: Image, t: Time, cond: Cond) -> jax.Array:
        _, sown = adapters.call(module, params, z, t, cond, mutable=["features"])
        (found,) = jax.tree.leaves(sown["features"])
        return found.astype(jnp.float32)

    def axes(params: Tree, z: Image, t: Time, cond: Cond) -> dict[str, int]:
        return adapters.input_axes(module, params, z, t, cond)

    found = middle if features else None
    return Network(init, apply, found, (), axes, per_layer=True, in_turn=policy == "full")


def fresh(init: Callable[..., Tree], zero: Sequence[str]) -> Callable[..., Tree]:
    """Returns a function like a Network's `init` that draws every leaf from its shape only.

    A kernel with n inputs to each output is uniform with variance 1 / n. Scales are 1, and other
    vectors 0. It never runs the network, and compiles faster than the initializers of the layers.

    Args:
      init: function of a key and example inputs, of which only the shapes of the result count.
      zero: regular expressions for the ends of the names of kernels that start at zero.
    """
    at_zero = re.compile(rf"({'|'.join(zero)})$")

    def draw(key: jax.Array, *example: Any) -> Tree:
        shapes = jax.eval_shape(init, key, *example)

        def leaf(path: tuple, like: jax.ShapeDtypeStruct, number: int) -> jax.Array:
            name = name_of(path)
            if is_vector(name, like) or at_zero.search(name):
                return jnp.full(like.shape, float(name.endswith("scale")), like.dtype)
            bound = math.sqrt(3 / math.prod(like.shape[is_stacked(name) : -1]))
            own = jax.random.fold_in(key, number)
            return jax.random.uniform(own, like.shape, like.dtype, -bound, bound)

        flat, structure = jax.tree_util.tree_flatten_with_path(shapes)
        drawn = [leaf(path, like, number) for number, (path, like) in enumerate(flat)]
        return jax.tree.unflatten(structure, drawn)

    return draw


def middle_of(blocks: int) -> int:
    """Returns the index of the block whose output is the middle of the network."""
    return (blocks - 1) // 2
