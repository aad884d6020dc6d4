"""The Student class: a finished network that samples, encodes and predicts."""

import contextlib
import dataclasses
import warnings
from collections.abc import Container, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_jax.diffusion.denoiser import Denoiser, NetworkSpec
from distill_jax.diffusion.noise import key_of, noise_of
from distill_jax.diffusion.prediction import ENCODERS, PARAMETERIZATIONS, Prediction
from distill_jax.diffusion.trained import Ancestral, Encode, Sampler, Trained
from distill_jax.models.adapters import merged
from distill_jax.models.build import matmul_precision
from distill_jax.runtime.options import MAX_STEPS, MAX_W
from distill_jax.runtime.sharding import Layout
from distill_jax.sampling import editing, inpainting
from distill_jax.sampling.codecs import PIXELS, Codec
from distill_jax.sampling.conditioners import Labels, Requests, on_device
from distill_jax.sampling.drawing import Guiding, run_sampler
from distill_jax.sampling.manifest import Manifest
from distill_jax.sampling.prompts import Text
from distill_jax.typing import Cond, Image, Time, Tree


@dataclasses.dataclass(frozen=True)
class Student:
    """A finished network with its sampler: any finished stage, also a teacher.

    Attributes:
      manifest: description from its directory: sampler, guidance, lineage, metrics, ...
      network_spec: network, parameterization and schedule.
      params: its parameters; Adapted if its directory has only adapters.
      layout: placement of the parameters; images are sharded over its devices.
      directory: the final/ that it was loaded from.
      parts: directories outside its workdir with its codec or base, see loading.load.
      allow: names that its manifest and those of its lineage may import, see loading.load.
      codec: codec between images and its x.
      text: conditioner of prompts, for a network with captions.
      image: condition of the images that the network inpaints, see with_masked.
    """

    manifest: Manifest
    network_spec: NetworkSpec
    params: Tree
    layout: Layout
    directory: epath.Path | None = None
    parts: tuple[epath.Path, ...] = ()
    allow: Container[str] = ()
    codec: Codec = PIXELS
    text: Text | None = None
    image: Mapping[str, np.ndarray] | None = None

    img2img = editing.sdedit
    inpaint = editing.inpaint
    translate = editing.translate
    with_masked = inpainting.with_masked

    def __repr__(self) -> str:
        """Returns a summary of a few lines."""
        manifest, trained = self.manifest, self.trained
        w = trained.guidance.w_range
        strength = f"w from {w[0]:g} to {w[1]:g}" if w else f"w = {trained.guidance.fixed_w:g}"
        size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return (
            f"Student of stage {manifest.stage}: {manifest.lineage.method.get('name')}, "
            f"{strength}\n"
            f"  {trained.sampler}, {'all times' if trained.all_times else 'these times only'}\n"
            f"  {'x'.join(map(str, self.shape))}, {self.num_classes or 'no'} classes; "
            f"{manifest.model['name']} with {size:,} parameters, {manifest.parameterization}\n"
            f"  from {self.directory}"
        )

    @property
    def trained(self) -> Trained:
        """The sampler, guidance and times that the network was trained for."""
        return self.manifest.trained

    @property
    def conditioner(self) -> Labels | Text:
        """The conditioner that turns labels or prompts into conditions of the network."""
        return Labels(self.manifest.spec) if self.text is None else self.text

    @property
    def takes_prompts(self) -> bool:
        """Whether the network draws from prompts, not labels."""
        return self.text is not None or self.manifest.conditioner is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (h, w, c) of one x."""
        return self.manifest.spec.x.shape

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape (h, w, c) of one image."""
        return self.codec.image_shape(self.shape)

    @property
    def num_classes(self) -> int:
        """The number of labels; 0 for a network without labels."""
        return self.network_spec.spec.classes("label")

    @property
    def takes_w(self) -> bool:
        """Whether w is an input of the network."""
        return self.trained.guidance.w_range is not None

    @property
    def can_be_guided(self) -> bool:
        """Whether classifier-free guidance can be applied: the network has a null condition."""
        return bool(not self.takes_w and self.manifest.spec.null and self.trained.guidance.null)

    @property
    def denoiser(self) -> Denoiser:
        """The network as a denoiser (z_t, t, cond) -> Prediction, for samplers and guidance."""
        return self.network_spec(self.params)

    @property
    def merged(self) -> "Student":
        """The student with merged weights, W + a b for every pair of adapters."""
        return dataclasses.replace(self, params=merged(self.params))

    def with_negative_prompt(self, prompt: str) -> "Student":
        """Returns the network with a prompt to be guided away from; ValueError if it cannot be."""
        if self.text is None:
            raise ValueError("a negative prompt needs a network with captions")
        if not self.can_be_guided:
            raise ValueError(
                "the guidance away from the empty prompt is part of this student's weights, which "
                "a negative prompt cannot change; sample the teacher with it, or leave it out"
            )
        return dataclasses.replace(self, text=dataclasses.replace(self.text, empty=prompt))

    def with_sampler(self, sampler: Sampler) -> "Student":
        """Returns the network with another sampler, which must fit its training."""
        trained = self.trained._replace(sampler=sampler)
        manifest = dataclasses.replace(self.manifest, trained=trained)
        return dataclasses.replace(self, manifest=manifest)

    def denoise(self, z: Image, t: Time, cond: Cond) -> Prediction:
        """Predicts the clean image and the noise in z at time t, for cond "label" and maybe "w"."""
        return self.denoiser(z, t, cond)

    def sample(
        self,
        key: jax.Array | int,
        num: int,
        label: Requests = None,
        w: float | np.ndarray | None = None,
        num_steps: int | None = None,
        variance: float | None = None,
        first: int = 0,
    ) -> jax.Array:
        """Draws images first, first + 1, ..., first + num - 1 of a key.

        Args:
          key: PRNG key, or a seed 0 <= key < 2^32 for jax.random.key(seed). Image i of a key is
            the same in every batch, and starts from the same noise for every label, w, num_steps.
          num: number of images.
          label: one label, or prompt for a network with captions, for all images, or one per image;
            None takes the classes in turn. It must be None for a network without either.
          w: guidance strength from 0 to 1000, one for all images or one per image. For a network
            that takes w, None is the smallest of its range. A teacher is guided with two calls per
            step; None is no guidance.
          num_steps: number of steps; None is the number that the network was trained for. Only a
            network that was trained at all times takes another number.
          variance: None for the network's own sampler; a number in [0, 1] for the ancestral sampler
            with this weight of the large variance, see samplers.ancestral.
          first: number of the first image.

        Returns:
          Images (num, h, w, c), in [-1, 1] if the data are bounded.

        Raises:
          ValueError: for a label, w or number of steps that the network was not trained for, and
            for an encoder.
        """
        k_z, k_sampler = jax.random.split(key_of(key))
        z = noise_of(k_z, first, num, self.shape)
        if label is None and not self.takes_prompts:
            label = Labels(self.manifest.spec).in_turn(num, first)
        return self.decode(z, label, w, num_steps, variance, k_sampler, first)

    def decode(
        self,
        z: jax.Array | np.ndarray,
        label: Requests = None,
        w: float | np.ndarray | None = None,
        num_steps: int | None = None,
        variance: float | None = None,
        key: jax.Array | None = None,
        first: int = 0,
    ) -> jax.Array:
        """Decodes given noise, such as that of `encode`, into images (num, h, w, c).

        Other arguments are as in `sample`. Only samplers that add noise use the key; None is key 0.
        """
        if variance is not None and not 0 <= variance <= 1:
            raise ValueError(f"variance is {variance!r}; expected a number in [0, 1], or None")
        sampler, (cond, guiding) = self.sampler(num_steps), self.conditions(len(z), label, w)
        if not sampler.decodes:
            raise ValueError(
                "this network is an encoder: it maps images to noise and draws no images; call "
                "student.encode(x, label), and sample with a decoder, such as a progressive stage"
            )
        if not (variance is None or self.trained.uses_ddim):
            raise ValueError(
                f"variance is {variance!r}, and {self.manifest.lineage.method['name']} students "
                "have a sampler of their own; leave it out"
            )
        if variance is not None:
            sampler = Ancestral(sampler.num_steps, variance)
        key = jax.random.key(0) if key is None else key
        given = (self.params, guiding), (key, first, jnp.asarray(z)), cond
        with self.precision():
            x = run_sampler(self.network_spec, self.layout, sampler, *given)
        return self.codec.decode(x)

    def encode(
        self,
        x: jax.Array | np.ndarray,
        label: Requests = None,
        w: float | np.ndarray | None = None,
        num_steps: int | None = None,
    ) -> jax.Array:
        """Encodes images x in [-1, 1] into the noise (num, h, w, c) from which `decode` makes them.

        A distilled encoder takes its own number of steps; a network trained at all times takes
        `num_steps` of reverse DDIM. A network with labels needs `label`; w is as in `sample`.

        Raises:
          ValueError: for a label, w or number of steps that the network was not trained for, and
            for a few-step decoder.
        """
        encoding, x = self.encoding(num_steps), self.latents(x)
        if label is None and self.manifest.spec.null:
            raise ValueError("label is None; say what the images show, one for all or one each")
        cond, guiding = self.conditions(len(x), label, w)
        given = (self.params, guiding), (jax.random.key(0), 0, x), cond
        with self.precision():
            return run_sampler(self.network_spec, self.layout, encoding, *given)

    def encoding(self, num_steps: int | None = None) -> Encode:
        """Returns the sampler that `encode` runs; raises ValueError as `encode` does."""
        sampler = self.sampler(num_steps)
        if self.network_spec.parameterization not in [PARAMETERIZATIONS[n] for n in ENCODERS]:
            raise ValueError(
                "this network's parameterization predicts no accurate noise for a clean image; "
                f"encode with a network of parameterization {', '.join(ENCODERS)}"
            )
        if sampler.decodes and not self.trained.all_times:
            raise ValueError(
                "this student only decodes; encode with the encoder stage of "
                f"{self.trained.num_steps} steps, or with the teacher, trained at all times"
            )
        return Encode(sampler.num_steps)

    def latents(self, x: jax.Array | np.ndarray) -> jax.Array:
        """Returns the latents of images x (num, h, w, c) in [-1, 1]; x itself without a codec.

        Raises:
          ValueError: for images of another shape than the network was trained on.
        """
        if x.shape[1:] != self.image_shape:
            raise ValueError(
                f"images are of shape {x.shape[1:]}; this network was trained on {self.image_shape}"
            )
        return self.codec.encode(jnp.asarray(x))

    def precision(self) -> contextlib.AbstractContextManager:
        """Returns a context manager that sets the matrix precision of the network's training."""
        return matmul_precision(self.manifest.matmul_precision)

    def calls(self, w: float | None = None, num_steps: int | None = None) -> int:
        """Returns the number of network calls (NFE) per image of `sample` with these arguments."""
        calls = int(self.sampler(num_steps).calls)
        return calls if self.takes_w or w is None else 2 * calls

    def conditions(
        self, num: int, label: Requests, w: float | np.ndarray | None
    ) -> tuple[dict[str, jax.Array], Guiding | None]:
        """Returns the network's conditions for `num` images, and the guidance around the network.

        Raises:
          ValueError: for a label or w that the network was not trained for.
        """
        asked, strengths = self.conditioner(label, num), self._strengths(w, num)
        cond = on_device({**asked, **inpainting.conditions(self, num)})
        if strengths is None:
            return cond, None
        if self.takes_w:
            return {**cond, "w": strengths}, None
        return cond, (strengths, on_device(self.conditioner.null))

    def _strengths(self, w: float | np.ndarray | None, num: int) -> jax.Array | None:
        bounds = self.trained.guidance.w_range
        w = bounds[0] if w is None and bounds else w
        if w is None:
            return None
        strengths = np.asarray(w, np.float32)
        inside = (strengths >= 0) & (strengths <= MAX_W)  # False for nan.
        if strengths.shape not in ((), (num,)) or not inside.all():
            raise ValueError(f"w is {w!r}; expected a number from 0 to {MAX_W:g}, or {num} of them")
        if bounds is None and not self.can_be_guided:
            if (strengths == np.float32(self.trained.guidance.fixed_w)).all():
                return None
            own = self.trained.guidance.fixed_w
            why = (
                f"guidance of w = {own:g} is in its weights already"
                if own
                else (
                    "it was not trained with label_dropout, so there is no null condition to guide "
                    "against"
                )
            )
            raise ValueError(f"w is {w!r}, but this network takes no w: {why}; leave w out")
        if bounds is not None:
            low, high = bounds
            if (strengths < low).any() or (strengths > high).any():
                warnings.warn(
                    f"w is {w!r}, outside the range [{low:g}, {high:g}] of this student's training",
                    stacklevel=3,
                )
        return jnp.broadcast_to(jnp.asarray(strengths), (num,))

    def sampler(self, num_steps: int | None = None) -> Sampler:
        """Returns the network's sampler, with `num_steps` steps if that is given.

        Raises:
          ValueError: if the network was trained for another number of steps only.
        """
        sampler, own = self.trained.sampler, self.trained.num_steps
        if num_steps in (None, own):
            return sampler
        if not 1 <= num_steps <= MAX_STEPS:
            raise ValueError(f"num_steps is {num_steps}; expected a whole number to {MAX_STEPS:,}")
        free = self.trained.all_times or not sampler.on_grid
        other = sampler.with_steps(int(num_steps)) if free else None
        if other is None:
            raise ValueError(
                f"num_steps is {num_steps}; this student was made for {own}. Load the stage with "
                "the number of steps you want"
            )
        return other
