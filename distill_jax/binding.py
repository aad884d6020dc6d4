"""What a config or a manifest says of networks, made into some: names looked up, sizes fitted."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Binding, Denoiser, Head, Sizes
from distill_jax.diffusion.prediction import PARAMETERIZATIONS, check_head
from distill_jax.diffusion.schedule import SCHEDULES
from distill_jax.lora import merge, new_adapters
from distill_jax.methods import Method, Nets
from distill_jax.models import DISCRIMINATORS, NETWORKS
from distill_jax.tables import build, lookup
from distill_jax.train import graft
from distill_jax.typing import Cond, Image, Time, Tree

Like = tuple[Binding, tuple[str, ...]]  # What a network is, and its inputs: see Method.inputs.


def make_binding(spec: Mapping[str, Any], shape: tuple[int, ...], num_classes: int) -> Binding:
    """Network, parameterization and schedule of a config or manifest; equal ones are identical.

    Args:
      spec: with "model", "schedule" and "parameterization".
      shape: (h, w, c) of one image.
      num_classes: of its labels.

    Raises:
      KeyError: for an unknown name.
      ValueError: for a parameterization that the schedule or the network does not go with.
    """
    names = ("model", "schedule", "parameterization")
    return _binding(json.dumps({name: spec[name] for name in names}), tuple(shape), num_classes)


@functools.cache
def _binding(spec: str, shape: tuple[int, ...], num_classes: int) -> Binding:
    spec = as_tuples(json.loads(spec))
    parameterization = lookup(PARAMETERIZATIONS, "parameterization", spec["parameterization"])
    schedule = build(SCHEDULES, "schedule", spec["schedule"])
    check_head(spec["parameterization"], schedule)
    sizes = Sizes(shape, num_classes, parameterization.channels * shape[-1], schedule)
    network, name = build(NETWORKS, "network", spec["model"], sizes), spec["parameterization"]
    if network.parameterizations and name not in network.parameterizations:
        raise ValueError(
            f"parameterization is {name!r}; network {spec['model']['name']!r} puts out "
            f"{', '.join(network.parameterizations)} alone"
        )
    return Binding(network, parameterization, sizes)


def matmul_precision(name: str) -> contextlib.AbstractContextManager:
    """Within it, float32 matrix products and convolutions are computed as config says.

    "default" leaves what is set: the device's way, or JAX_DEFAULT_MATMUL_PRECISION.
    """
    if name == "default":
        return contextlib.nullcontext()
    return jax.default_matmul_precision(name)


def initial_params(key: jax.Array, binding: Binding, method: Method) -> Tree:
    """Fresh parameters of the network that `method` trains."""
    return _initial(key, binding, method.inputs)


def _initial(key: jax.Array, binding: Binding, inputs: tuple[str, ...]) -> Tree:
    cond = binding.sizes.conditions(inputs)
    z = jnp.zeros((1, *binding.sizes.shape))
    return binding.network.init(key, z, jnp.zeros((1,)), cond)


def abstract_params(binding: Binding, method: Method) -> Tree:
    """Shapes and types of `initial_params`, computed without making any."""
    return _shapes(binding, method.inputs)


@functools.cache  # All halvings of a chain have the same.
def _shapes(binding: Binding, inputs: tuple[str, ...]) -> Tree:
    return jax.eval_shape(lambda key: _initial(key, binding, inputs), jax.random.key(0))


def rounded(params: Tree, dtype: str) -> Tree:
    """Parameters as a network that is not trained keeps them, where they are: in `dtype`.

    Vectors and scalars stay float32, for they are few: biases, scales of normalisations, and
    frequencies, of which eight bits are too little.
    """
    return params if dtype == "float32" else _rounded(params, dtype)


@functools.partial(jax.jit, static_argnames="dtype")
def _rounded(params: Tree, dtype: str) -> Tree:
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, params)


@dataclasses.dataclass(frozen=True)
class Bind:
    """Parameters by role -> the networks that a loss sees. Equal ones share compiled updates.

    Attributes:
      student: what the student is.
      teacher: what the frozen teacher is, None without one.
      fake: whether there is a fake network; it is what the student is, and starts as it does unless
        it is given a start of its own.
      critic: the head of the fake network that tells data from samples, a name in DISCRIMINATORS;
        "" without one.
      rank: of the adapters that student and fake train in place of their weights, which stay the
        teacher's (distill_jax.lora); 0 trains the weights.
      new: modules that the network a student starts from may lack; they are trained in full.
      gather: makes parameters that are split over devices whole where they are used, see
        sharding.Layout.gather; None leaves them as they are.
    """

    student: Binding
    teacher: Binding | None = None
    fake: bool = False
    critic: str = ""
    rank: int = 0
    new: tuple[str, ...] = ()
    gather: Callable[[Tree], Tree] | None = None

    def __call__(self, params: Mapping[str, Tree]) -> Nets:
        if self.gather is not None:
            params = self.gather(params)
        student = self.student(self.weights(params, params["student"]))
        teacher = None if self.teacher is None else self.teacher(params["teacher"])
        return Nets(student, teacher, self._fake(params) if self.fake else None)

    def weights(self, params: Mapping[str, Tree], trained: Tree) -> Tree:
        """The weights of a network of which `trained` is trained."""
        return merge(params["start"], trained) if self.rank else trained

    @property
    def _head(self) -> Head:
        return lookup(DISCRIMINATORS, "discriminator", self.critic)(self.student.sizes.shape)

    def _fake(self, params: Mapping[str, Tree]) -> Denoiser:
        fake = self.student(self.weights(params, params["fake"]["network"]))
        if not self.critic:
            return fake

        def critic(z: Image, t: Time, cond: Cond) -> Time:
            return self._head.apply(params["fake"]["critic"], fake.features(z, t, cond))

        return dataclasses.replace(fake, critic=critic)

    def initial(
        self,
        key: jax.Array,
        inputs: tuple[str, ...],
        start: Tree | None,
        fake: Tree | None = None,
    ) -> dict[str, Tree]:
        """What every role trains, at the start.

        Args:
          key: of what is not taken over.
          inputs: of the student, see Method.inputs.
          start: parameters that student and fake take over, None for fresh ones.
          fake: parameters that the fake takes over in place of those, None for none.

        Returns:
          Parameters by role; with adapters also "start", which is not trained.

        Raises:
          ValueError: where `start` or `fake` does not fit.
        """
        params = _initial(key, self.student, inputs)
        if start is not None:
            params = graft(params, start, self.new)
        roles, network = {}, params
        if self.rank:
            roles["start"] = params
            network = new_adapters(jax.random.fold_in(key, 1), params, self.rank, self.new)
        roles["student"] = network
        if self.fake:
            own = network if fake is None else graft(params, fake, self.new)
            roles["fake"] = {"network": own}
        if self.critic:
            binding = self.student
            z, t = jnp.zeros((1, *binding.sizes.shape)), jnp.zeros((1,))
            features = binding(params).features(z, t, binding.sizes.conditions(inputs))
            roles["fake"]["critic"] = self._head.init(jax.random.fold_in(key, 2), features)
        return roles


@functools.cache  # All halvings of a chain have the same.
def role_shapes(
    bind: Bind, inputs: tuple[str, ...], start: Like | None, fake: Like | None = None
) -> dict[str, Tree]:
    """Shapes and types of `bind.initial`, where student and fake start from networks like these.

    Each is what the network is and what it takes beside z, t and label; None as in `initial`.
    """

    def initial(key: jax.Array, *begun: Tree | None) -> dict[str, Tree]:
        return bind.initial(key, inputs, *begun)

    begun = (None if like is None else _shapes(*like) for like in (start, fake))
    return jax.eval_shape(initial, jax.random.key(0), *begun)


def as_tuples(spec: Any) -> Any:
    """JSON lists back to tuples, which are hashable."""
    if isinstance(spec, Mapping):
        return {key: as_tuples(value) for key, value in spec.items()}
    return tuple(as_tuples(value) for value in spec) if isinstance(spec, list) else spec
