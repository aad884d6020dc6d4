"""The sampler of a student as one function of arrays, for export to other programs."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion.noise import keys_of, noise_at
from distill_jax.diffusion.trained import Ddim, Renoise, Sampler
from distill_jax.models import text_compositions
from distill_jax.runtime.options import MAX_STEPS, MAX_W
from distill_jax.runtime.trees import by_name
from distill_jax.sampling.conditioners import on_device
from distill_jax.sampling.drawing import Guiding, bound
from distill_jax.sampling.prompts import Text, mask_of
from distill_jax.sampling.student import Student
from distill_jax.typing import Cond, Image

BATCH = "b"  # The name of the batch axis in a shape.
MAX_BYTES = 2**31 - 2**24  # Of weights in one file: the formats are limited to 2 GiB.
STARTS = ("noise", "seed")
ANY = 0  # The number of steps that stands for an input.
Arrays = dict[str, jax.Array]
Shape = tuple[int | str, ...]


class Input(NamedTuple):
    """An input of a program.

    Attributes:
      name: its name.
      shape: its shape, in which "b" is the number of images.
      dtype: name of its dtype.
      meaning: what it is, for people.
      range: smallest and largest value; None for any.
    """

    name: str
    shape: Shape
    dtype: str
    meaning: str
    range: tuple[float, float] | None = None


class Program(NamedTuple):
    """A sampler with its weights as one function.

    Attributes:
      call: maps arrays in the order of `inputs` to images.
      inputs: see Input.
      output: images, (b, h, w, c).
      calls: network calls for each image, and for each step where the steps are an input; guidance
        around a network counts twice.
    """

    call: Callable[..., Image]
    inputs: tuple[Input, ...]
    output: Input
    calls: int

    def examples(self, batch: Any) -> list[jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of the inputs for a number of images, maybe symbolic."""
        return [
            jax.ShapeDtypeStruct(
                tuple(batch if side == BATCH else side for side in each.shape), each.dtype
            )
            for each in self.inputs
        ]


STEPS = Input("num_steps", (), "int32", "number of steps", (1, MAX_STEPS))


def program_of(student: Student, start: str = "noise", num_steps: int | None = None) -> Program:
    """Returns the sampler of a loaded student, with codec, text encoder and guidance.

    Args:
      student: a loaded student.
      start: "noise" for images of the noise that is given; "seed" for those that student.sample
        draws, of a seed and the numbers of the images.
      num_steps: number of steps, as in student.sample; ANY makes it an input.

    Raises:
      ValueError: for an encoder, conditions that no input stands for, too many weights, and a
        number of steps that the student does not take.
    """
    free = num_steps == ANY
    sampler, student = _one_step(student) if free else student.sampler(num_steps), student.merged
    _check(student, sampler)
    starts, draw = _from_seed(student) if start == "seed" else _from_noise(student, sampler)
    asked = _tokens(student.text) if student.text else _labels(student)
    null = on_device(student.conditioner.null) if student.can_be_guided else None
    inputs = (*starts, *asked, *_strength(student), *((STEPS,) if free else ()))

    def call(*arrays: jax.Array) -> Image:
        given = {each.name: array for each, array in zip(inputs, arrays, strict=True)}
        z, key = draw(given)
        cond: Cond = encoded(student.text, given) if student.text else {}
        guiding: Guiding | None = None if null is None else (given["w"], null)
        names = ("label", "w") if null is None else ("label",)
        cond = {**cond, **{name: given[name] for name in names if name in given}}
        denoiser = bound(student.network_spec, student.params, guiding)
        used = Ddim(given["num_steps"]) if free else sampler
        x = used(key, denoiser, z, cond)
        return student.codec.decode(jnp.clip(x, -1.0, 1.0) if denoiser.bounded else x)

    images: Shape = (BATCH, *student.image_shape)
    bounds = (-1.0, 1.0) if student.manifest.spec.bounded or student.manifest.codec else None
    output = Input("images", images, "float32", "images, -1 is black and 1 is white", bounds)
    return Program(call, inputs, output, int(sampler.num_steps) * (1 if null is None else 2))


def takes_any_steps(student: Student) -> bool:
    """Returns whether the number of steps can be an input: DDIM's, at all times."""
    return student.trained.all_times and isinstance(student.trained.sampler, Ddim)


def _one_step(student: Student) -> Sampler:
    """Returns DDIM's sampler in one step; ValueError for a student of a fixed number of steps."""
    if not takes_any_steps(student):
        raise ValueError(
            f"num_steps is {ANY}, which makes it an input, and {student.manifest.stage} takes "
            f"{student.trained.num_steps} only; leave num_steps out"
        )
    return Ddim(1)


def _check(student: Student, sampler: Sampler) -> None:
    """Raises ValueError for a student that no program can be made of."""
    stage = student.manifest.stage
    if not sampler.decodes:
        raise ValueError(
            f"{stage} is an encoder, which maps images to noise; export the stage that decodes"
        )
    known = {"label"} if student.text is None else set(student.text.encoder.leaves)
    if others := [name for name, _ in student.manifest.spec.cond if name not in known]:
        raise ValueError(
            f"{stage} takes {', '.join(others)}; expected labels, or prompts with their text "
            "encoder (--conditioner=DIR or --pipeline=DIR)"
        )
    codec = getattr(student.codec, "params", {})
    held = (student.params, codec, student.text.params if student.text else {})
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(held))
    if size > MAX_BYTES:
        largest = max(by_name(student.params).values(), key=lambda leaf: leaf.nbytes)
        raise ValueError(
            f"{stage} has weights of {size / 2**30:.1f} GiB (the largest is {largest.dtype}), and "
            "a file of this format holds 2 GiB; take --format=safetensors or diffusers"
        )


def _from_noise(
    student: Student, sampler: Sampler
) -> tuple[tuple[Input, ...], Callable[[Arrays], tuple[Image, jax.Array]]]:
    """Returns the input of noise, and a function that returns the first noise and the rest."""
    shape, steps = student.shape, int(sampler.num_steps)
    several = sampler.draws and steps > 1
    meaning = "standard normal noise"
    meaning += ", entry k of axis 1 is added before call k, from 0" if several else ""
    axes: Shape = (BATCH, steps, *shape) if several else (BATCH, *shape)

    def draw(given: Arrays) -> tuple[Image, jax.Array]:
        noise = given["noise"] if several else given["noise"][:, None]
        # Renoise counts the noise before a call by that call, the others by the call before it.
        return noise[:, 0], noise if isinstance(sampler, Renoise) else noise[:, 1:]

    return (Input("noise", axes, "float32", meaning),), draw


def _from_seed(
    student: Student,
) -> tuple[tuple[Input, ...], Callable[[Arrays], tuple[Image, jax.Array]]]:
    """Returns the inputs of a seed, and a function that draws as student.sample does."""
    inputs = (
        Input("seed", (), "uint32", "seed of the noise", (0, 2**32 - 1)),
        Input("number", (BATCH,), "uint32", "numbers of the images of the seed, from 0"),
    )

    def draw(given: Arrays) -> tuple[Image, jax.Array]:
        k_z, k_sampler = jax.random.split(jax.random.key(given["seed"]))
        z = noise_at(keys_of(k_z, given["number"]), student.shape)
        return z, keys_of(k_sampler, given["number"])

    return inputs, draw


def _labels(student: Student) -> Sequence[Input]:
    """Returns the input of labels, if the network takes them."""
    classes = student.num_classes
    if not classes:
        return ()
    return (Input("label", (BATCH,), "int32", "class of each image", (0, classes - 1)),)


def _tokens(text: Text) -> Sequence[Input]:
    """Returns the inputs of token numbers, one for each text encoder."""
    names = names_of_tokens(text)
    meaning = "token numbers of each prompt, with start, end and padding"
    return [
        Input(name, (BATCH, each.length), "int32", meaning, (0, each.largest))
        for name, each in zip(names, text.tokenizers, strict=True)
    ]


def names_of_tokens(text: Text) -> list[str]:
    """Returns the names of the inputs of token numbers: tokens, tokens_2, tokens_3."""
    return [
        "tokens",
        *(f"tokens_{n}" for n in itertools.islice(itertools.count(2), len(text.tokenizers) - 1)),
    ]


def _strength(student: Student) -> Sequence[Input]:
    """Returns the input of the guidance strength, if there is one."""
    bounds = student.trained.guidance.w_range or ((0.0, MAX_W) if student.can_be_guided else None)
    if bounds is None:
        return ()
    return (Input("w", (BATCH,), "float32", "guidance strength, 0 is none", bounds),)


def encoded(text: Text, given: Arrays) -> Cond:
    """Returns the conditions of token numbers, as Text does those of prompts."""
    ids = [given[name] for name in names_of_tokens(text)]
    masks = [mask_of(each, one.end) for each, one in zip(ids, text.tokenizers, strict=True)]
    found = text_compositions.conditions(text.encoder, text.params, ids, masks)
    if not text.encoder.zeros:
        return found
    empty = np.concatenate([tokenizer([""])[0] for tokenizer in text.tokenizers], axis=1)
    is_empty = jnp.all(jnp.concatenate(ids, axis=1) == empty, axis=1)
    for name in ("text", "pooled"):
        rows = is_empty.reshape(-1, *[1] * (found[name].ndim - 1))
        found = {**found, name: jnp.where(rows, 0, found[name])}
    return found
