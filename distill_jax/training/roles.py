"""The roles of a stage, which turn parameters by role into the networks that a loss gets."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax

from distill_jax.diffusion.denoiser import Denoiser, Head, NetworkSpec
from distill_jax.diffusion.trained import Sampler
from distill_jax.methods import Nets
from distill_jax.models import DISCRIMINATORS
from distill_jax.models.adapters import Adapted
from distill_jax.models.build import (
    abstract_params,
    adapter_shapes,
    fresh_adapters,
    initial_params,
)
from distill_jax.models.graft import graft
from distill_jax.models.sharded import as_called
from distill_jax.runtime.registry import EVERYTHING, lookup
from distill_jax.runtime.sharding import Layout
from distill_jax.typing import Cond, Image, Time, Tree


class Role(NamedTuple):
    """The kind of a role's parameters: its own weights, or adapters of another role's weights.

    Attributes:
      base: role whose frozen weights the adapters change; None for a role with its own weights.
      rank: rank of the adapters.
    """

    base: str | None = None
    rank: int = 0


class Like(NamedTuple):
    """The description that determines the shapes of a finished network's parameters.

    Attributes:
      network_spec: network, parameterization and shapes.
      inputs: inputs other than z, t and the data's conditions; see Trained.inputs.
      base: description of the network whose weights the adapters change; None without adapters.
      rank: rank of the adapters.
      full: modules that are trained in full among the adapters.
    """

    network_spec: NetworkSpec
    inputs: tuple[str, ...]
    base: "Like | None" = None
    rank: int = 0
    full: tuple[str, ...] = ()

    @property
    def shapes(self) -> Tree:
        """Shapes and types of the parameters; of only the adapters if the network has any."""
        if self.base is None:
            return abstract_params(self.network_spec, self.inputs)
        return adapter_shapes(self.network_spec, self.inputs, self.rank, self.full)


@dataclasses.dataclass(frozen=True)
class Roles:
    """The roles of a stage, a function from parameters by role to the networks that a loss gets.

    Equal instances share compiled updates.

    Attributes:
      student: network of the student.
      teacher: network of the frozen teacher, None without one.
      fake: whether there is a fake network. It has the student's architecture, and starts with the
        student's weights unless it has its own start.
      discriminator: discriminator head on the fake network, a name in DISCRIMINATORS; "" for none.
      trained: parameters of student and fake: their own weights, or adapters of the weights of
        "teacher" or of "base", a frozen role that the loss does not call.
      frozen: parameters of the teacher.
      full: modules that the student may have in addition to the network that it starts from. With
        adapters, these modules are trained in full, in all later stages of the chain too.
      layout: layout of sharded parameters, which are gathered where they are used, see
        sharded.as_called; None for unsharded parameters.
      sampler: the teacher's sampler, for methods that draw its samples; None for others.
      keeps: whether the loss also calls the teacher with the student's adapters.
    """

    student: NetworkSpec
    teacher: NetworkSpec | None = None
    fake: bool = False
    discriminator: str = ""
    trained: Role = Role()
    frozen: Role = Role()
    full: tuple[str, ...] = ()
    layout: Layout | None = None
    sampler: Sampler | None = None
    keeps: bool = False

    def __call__(self, params: Mapping[str, Tree]) -> Nets:
        student = self._bound(self.student, self.trained, params["student"], params)
        teacher = None
        if self.teacher is not None:
            teacher = self._bound(self.teacher, self.frozen, params["teacher"], params)
        fake = self._fake(params) if self.fake else None
        changed = None
        if self.keeps:
            onto = self.trained._replace(base="teacher")
            changed = self._bound(self.student, onto, params["student"], params)
        return Nets(student, teacher, fake, self.sampler, changed)

    def _bound(
        self, network_spec: NetworkSpec, role: Role, own: Tree, params: Mapping[str, Tree]
    ) -> Denoiser:
        given = own if role.base is None else Adapted(params[role.base], own)
        return network_spec(as_called(given, self.layout, network_spec.network))

    @property
    def _head(self) -> Head:
        return lookup(DISCRIMINATORS, "discriminator", self.discriminator, EVERYTHING)(
            self.student.spec.shape
        )

    def _fake(self, params: Mapping[str, Tree]) -> Denoiser:
        fake = self._bound(self.student, self.trained, params["fake"]["network"], params)
        if not self.discriminator:
            return fake

        def discriminator(z: Image, t: Time, cond: Cond) -> Time:
            head = as_called(params["fake"]["discriminator"], self.layout, None)
            found = fake.features(z, t, cond)  # type: ignore[misc]  # Plans refuse a network without.
            return self._head.apply(head, found)

        return dataclasses.replace(fake, discriminator=discriminator)

    def initial(
        self,
        key: jax.Array,
        inputs: tuple[str, ...],
        start: Tree | None,
        fake: Tree | None = None,
        base: Tree | None = None,
    ) -> dict[str, Tree]:
        """Returns the trained parameters by role before the first iteration.

        Args:
          key: PRNG key of fresh parameters.
          inputs: inputs of the student, see Trained.inputs.
          start: parameters (or adapters) that student and fake start with, None for fresh ones.
          fake: parameters that the fake starts with instead, None to start like the student.
          base: frozen weights that the adapters change; None without adapters.

        Raises:
          ValueError: when `start`, `fake` or `base` does not fit.
        """
        params = initial_params(key, self.student, inputs)
        if self.trained.base is not None:
            params = graft(params, base, self.full)
            key_a, rank = jax.random.fold_in(key, 1), self.trained.rank
            network = fresh_adapters(key_a, self.student, inputs, params, rank, self.full)
        else:
            network = params
        if start is not None:
            network = graft(network, start, self.full)
        roles = {"student": network}
        if self.fake:
            own = network if fake is None else graft(network, fake, self.full)
            roles["fake"] = {"network": own}
        if self.discriminator:
            example = self.student.spec.example(inputs)
            features = self.student(params).features(*example)  # type: ignore[misc]  # The same.
            roles["fake"]["discriminator"] = self._head.init(jax.random.fold_in(key, 2), features)
        return roles


@functools.lru_cache(maxsize=64)  # All halvings of a chain share an entry.
def role_shapes(
    roles: Roles,
    inputs: tuple[str, ...],
    start: Like | None,
    fake: Like | None = None,
    base: Like | None = None,
) -> dict[str, Tree]:
    """Returns the shapes and types of `roles.initial` for starts with these descriptions.

    None has the same meaning as in `initial`.
    """

    def initial(key: jax.Array, *begun: Tree | None) -> dict[str, Tree]:
        return roles.initial(key, inputs, *begun)

    begun = (None if like is None else like.shapes for like in (start, fake, base))
    return jax.eval_shape(initial, jax.random.key(0), *begun)
