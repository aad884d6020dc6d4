"""A finished network, ready to sample: its directory is the only argument it needs."""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_jax.diffusion.denoiser import Binding, Denoiser, clipped, guided
from distill_jax.diffusion.encoding import ddim_encode
from distill_jax.diffusion.prediction import PARAMETERIZATIONS, Prediction
from distill_jax.diffusion.samplers import ancestral
from distill_jax.methods import METHODS, Method
from distill_jax.models.build import abstract_params, as_tuples, make_binding, matmul_precision
from distill_jax.runtime.files import absolute
from distill_jax.runtime.registry import build
from distill_jax.runtime.sharding import Layout, make_layout
from distill_jax.storage import checkpoint
from distill_jax.typing import Cond, Image, Time, Tree

# Strengths w (num,) and the conditions that stand for "no condition": see denoiser.guided.
Guidance = tuple[jax.Array, Cond]


@dataclasses.dataclass(frozen=True)
class Student:
    """A network with its sampler. Any finished stage is one, the teacher included.

    Attributes:
      manifest: what its directory says about it: steps, times, w range, lineage, metrics, ...
      binding: network, parameterization and schedule.
      method: what trained it, which knows how to sample it.
      params: its parameters.
      layout: where they are; images are split over its devices.
      directory: the final/ that it is from.
    """

    manifest: Mapping[str, Any]
    binding: Binding
    method: Method
    params: Tree
    layout: Layout
    directory: epath.Path | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(h, w, c) of one image."""
        return tuple(self.manifest["shape"])

    @property
    def num_classes(self) -> int:
        """Labels are 0 .. num_classes - 1; 0 for a network without labels."""
        return self.manifest["num_classes"]

    @property
    def takes_w(self) -> bool:
        """Whether guidance is an input of the network."""
        return self.method.w_range is not None

    @property
    def can_be_guided(self) -> bool:
        """Whether classifier-free guidance around the network makes sense."""
        dropout = getattr(self.method, "label_dropout", 0)
        return not self.takes_w and self.num_classes > 0 and dropout > 0

    @property
    def denoiser(self) -> Denoiser:
        """The network as a function of (z_t, t, cond), for samplers and guidance."""
        return self.binding(self.params)

    def denoise(self, z: Image, t: Time, cond: Cond) -> Prediction:
        """The clean image and the noise in z at time t, for cond "label" and, if taken, "w"."""
        return self.denoiser(z, t, cond)

    def sample(
        self,
        key: jax.Array,
        num: int,
        label: int | np.ndarray | None = None,
        w: float | np.ndarray | None = None,
        num_steps: int | None = None,
        variance: float | None = None,
    ) -> jax.Array:
        """Draws images.

        Args:
          key: PRNG key; the same key, num and label give the same image at every w and num_steps.
          num: how many.
          label: one for all, or one each; None takes the classes in turn, and is the only choice
            for a network without labels.
          w: guidance strength >= 0, one for all or one each. A network that takes w gets it as an
            input (None: the smallest of its range); a teacher is guided with two calls per step
            (None: not guided).
          num_steps: network steps; None is what the network was made for. Only a network trained
            in continuous time takes another number.
          variance: None is the sampler that the network was made for; a number in [0, 1] is the
            ancestral sampler with that weight of the large variance, see samplers.ancestral.

        Returns:
          (num, h, w, c), in [-1, 1] where the method clips.

        Raises:
          ValueError: for a label, w or number of steps that the network does not know, and from
            an encoder.
        """
        k_z, k_sampler = jax.random.split(key)
        z = jax.random.normal(k_z, (num, *self.shape))
        return self.decode(z, label, w, num_steps, variance, k_sampler)

    def decode(
        self,
        z: jax.Array | np.ndarray,
        label: int | np.ndarray | None = None,
        w: float | np.ndarray | None = None,
        num_steps: int | None = None,
        variance: float | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The images (num, h, w, c) of given noise, such as that of `encode`; else as `sample`.

        A key matters to samplers that add noise on their way alone; None is key 0.
        """
        if variance is not None and not 0 <= variance <= 1:
            raise ValueError(f"variance is {variance!r}; expected a number in [0, 1], or None")
        method, (cond, guidance) = self.with_steps(num_steps), self.conditions(len(z), label, w)
        if not (variance is None or method.walks_ddim):
            raise ValueError(
                f"variance is {variance!r}, and {self.manifest['method']['name']} students have a "
                "sampler of their own; leave it out"
            )
        key, networks = jax.random.key(0) if key is None else key, (self.params, guidance)
        places = self.binding, self.layout
        with self.precision():
            return _draw(*places, method, networks, (key, jnp.asarray(z)), cond, variance)

    def encode(
        self,
        x: jax.Array | np.ndarray,
        label: int | np.ndarray | None = None,
        w: float | np.ndarray | None = None,
        num_steps: int | None = None,
    ) -> jax.Array:
        """The noise (num, h, w, c) that `decode` takes back to the images x, in [-1, 1].

        A distilled encoder takes its own steps; a network trained in continuous time takes
        `num_steps` of reverse DDIM. `label` must be given to a network that knows labels; w is as
        in `sample`.

        Raises:
          ValueError: for a label, w or number of steps that the network does not know, and from a
            few-step sampler.
        """
        method, known = self.with_steps(num_steps), METHODS["encoder"].parameterizations
        if self.binding.parameterization not in [PARAMETERIZATIONS[name] for name in known]:
            raise ValueError(
                "in a clean image what this network predicts says nothing of the noise; networks "
                f"with the parameterization {', '.join(known)} encode"
            )
        if method.decodes and not method.continuous:
            raise ValueError(
                "this student only decodes; encode with the encoder stage of "
                f"{int(method.num_steps)} steps, or with the teacher, which knows all times"
            )
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"images are of shape {x.shape[1:]}; this network was trained on {self.shape}"
            )
        if label is None and self.num_classes:
            raise ValueError("label is None; say what the images show, one for all or one each")
        cond, guidance = self.conditions(len(x), label, w)
        places, networks = (self.binding, self.layout), (self.params, guidance)
        with self.precision():
            return _encode(*places, method, networks, jnp.asarray(x), cond)

    def precision(self) -> contextlib.AbstractContextManager:
        """Within it, matrix products are computed as they were in its training."""
        return matmul_precision(self.manifest.get("matmul_precision", "default"))

    def calls(self, w: float | None = None, num_steps: int | None = None) -> int:
        """Network calls per image of `sample` with these arguments."""
        steps = int(self.with_steps(num_steps).num_steps)
        return steps if self.takes_w or w is None else 2 * steps

    def conditions(
        self, num: int, label: int | np.ndarray | None, w: float | np.ndarray | None
    ) -> tuple[dict[str, jax.Array], Guidance | None]:
        """What the network is called with for `num` images, and how it is guided around that.

        Raises:
          ValueError: for a label or w that the network does not know.
        """
        cond, w = self._labels(label, num), self._strengths(w, num)
        if self.takes_w:
            return {**cond, "w": w}, None
        if w is None:
            return cond, None
        return cond, (w, {"label": jnp.full((num,), self.num_classes, jnp.int32)})

    def _labels(self, label: int | np.ndarray | None, num: int) -> dict[str, jax.Array]:
        if not self.num_classes:
            if label is not None:
                raise ValueError(f"label is {label!r}; this network knows no labels: leave it out")
            return {}
        labels = np.arange(num) % self.num_classes if label is None else np.asarray(label)
        if not np.issubdtype(labels.dtype, np.integer) or labels.shape not in ((), (num,)):
            raise ValueError(f"label is {label!r}; expected an integer, or {num} of them")
        if labels.size and (labels.min() < 0 or labels.max() >= self.num_classes):
            raise ValueError(f"label is {label!r}; this network knows 0 to {self.num_classes - 1}")
        return {"label": jnp.broadcast_to(jnp.asarray(labels, jnp.int32), (num,))}

    def _strengths(self, w: float | np.ndarray | None, num: int) -> jax.Array | None:
        if w is None and not self.takes_w:
            return None
        strengths = np.asarray(self.method.w_range[0] if w is None else w, np.float32)
        if strengths.shape not in ((), (num,)) or not (strengths >= 0).all():
            raise ValueError(f"w is {w!r}; expected a number from 0, or {num} of them")
        if not self.takes_w and not self.can_be_guided:
            raise ValueError(
                f"w is {w!r}, but this network takes no w and was not trained with label_dropout, "
                "so there is no null condition to guide against; leave w out"
            )
        if self.takes_w:
            low, high = self.method.w_range
            if (strengths < low).any() or (strengths > high).any():
                warnings.warn(
                    f"w is {w!r}, outside the range [{low:g}, {high:g}] that this student knows",
                    stacklevel=3,
                )
        return jnp.broadcast_to(jnp.asarray(strengths), (num,))

    def with_steps(self, num_steps: int | None) -> Method:
        """The method with another number of steps; None leaves it.

        Raises:
          ValueError: when the network does not leave a choice.
        """
        if num_steps in (None, self.method.num_steps):
            return self.method
        if not (self.method.continuous or self.method.any_steps):
            raise ValueError(
                f"num_steps is {num_steps}; this student was made for {self.method.num_steps}. "
                "Load the stage with the number of steps you want"
            )
        if num_steps < 1:
            raise ValueError(f"num_steps is {num_steps}; expected a whole number from 1")
        return dataclasses.replace(self.method, num_steps=int(num_steps))


@functools.partial(jax.jit, static_argnames=("binding", "layout"))
def _draw(
    binding: Binding,
    layout: Layout,
    method: Method,
    networks: tuple[Tree, Guidance | None],
    noise: tuple[jax.Array, Image],
    cond: Cond,
    variance: float | jax.Array | None,
) -> Image:
    """Traced in everything but shapes: one program for all w and all numbers of steps."""
    (params, guidance), (key, z), num = networks, noise, len(noise[1])
    z, cond, guidance = layout.spread((z, cond, guidance))
    denoiser = bound(binding, layout.gather(params), guidance)
    if variance is None or not method.decodes:
        x = layout.cut(method.sample(key, denoiser, z, cond), num)
        return jnp.clip(x, -1.0, 1.0) if method.clip and method.decodes else x
    denoiser = clipped(denoiser) if method.clip else denoiser
    return layout.cut(ancestral(key, denoiser, z, cond, method.num_steps, variance), num)


@functools.partial(jax.jit, static_argnames=("binding", "layout"))
def _encode(
    binding: Binding,
    layout: Layout,
    method: Method,
    networks: tuple[Tree, Guidance | None],
    x: Image,
    cond: Cond,
) -> Image:
    (params, guidance), num = networks, len(x)
    x, cond, guidance = layout.spread((x, cond, guidance))
    denoiser = bound(binding, layout.gather(params), guidance)
    return layout.cut(ddim_encode(denoiser, x, cond, method.num_steps), num)


def bound(binding: Binding, params: Tree, guidance: Guidance | None) -> Denoiser:
    """The denoiser with these parameters, guided where there is guidance."""
    denoiser = binding(params)
    return denoiser if guidance is None else guided(denoiser, *guidance)


def load(path: epath.PathLike, layout: Layout | None = None) -> Student:
    """The finished network in a directory.

    Args:
      path: a final/ directory, the stage it belongs to, or a workdir, whose last finished stage
        is taken.
      layout: where to put the parameters; None is the first device of this process, wherever they
        were trained.

    Raises:
      FileNotFoundError: when nothing finished is there.
      ValueError: when it is damaged or was written by a newer version.
    """
    student = describe(path, layout)
    params = student.layout.abstract(abstract_params(student.binding, student.method.inputs))
    return dataclasses.replace(student, params=checkpoint.load_params(student.directory, params))


def load_fake(path: epath.PathLike, layout: Layout) -> Tree:
    """The parameters of the fake network that a stage with keep_fake left, as of `load`.

    Raises:
      FileNotFoundError: when nothing finished is there.
      ValueError: when there is no fake network, or it is damaged.
    """
    student = describe(path, layout)
    params = student.layout.abstract(abstract_params(student.binding, student.method.inputs))
    return checkpoint.load_params(student.directory, params, "fake")


def describe(path: epath.PathLike, layout: Layout | None = None) -> Student:
    """`load` without reading the parameters, which are None."""
    final = find_final(path)
    manifest = checkpoint.read_manifest(final)
    shape, num_classes = tuple(manifest["shape"]), manifest["num_classes"]
    binding = make_binding(manifest, shape, num_classes)
    method = build(METHODS, "method", as_tuples(manifest["method"]))
    layout = layout or make_layout({}, jax.local_devices()[:1])
    return Student(manifest, binding, method, None, layout, final)


def find_final(path: epath.PathLike) -> epath.Path:
    """The final/ directory that `path` means: itself, its stage's, or its workdir's last one."""
    path = absolute(path)
    candidates = [path, path / "final"]
    if path.is_dir():
        candidates += [stage / "final" for stage in sorted(path.glob("s[0-9]*_*"), reverse=True)]
    for candidate in candidates:
        if (candidate / "manifest.json").exists():
            return candidate
    raise FileNotFoundError(
        f"{path} has no finished network: expected manifest.json in it, in its final/, or in the "
        "final/ of a stage below it"
    )
