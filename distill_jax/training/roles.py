"""The roles of a stage: parameters by role become the networks that a loss is given."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax

from distill_jax.diffusion.denoiser import Denoiser, Head, NetworkSpec
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
    """Whether a role has weights of its own or adapters of another role's.

    Attributes:
      base: the role whose frozen weights they are adapters of; None for parameters of its own.
      rank: of the adapters.
    """

    base: str | None = None
    rank: int = 0


class Like(NamedTuple):
    """The description that decides the shapes of a finished network's parameters.

    Attributes:
      network_spec: what it is.
      inputs: see Trained.inputs.
      base: that of the network whose weights it has adapters of; None without adapters.
      rank: of its adapters.
      full: modules that stand among its adapters in full.
    """

    network_spec: NetworkSpec
    inputs: tuple[str, ...]
    base: "Like | None" = None
    rank: int = 0
    full: tuple[str, ...] = ()

    @property
    def shapes(self) -> Tree:
        """Shapes and types of the parameters; of the adapters alone where it has them."""
        if self.base is None:
            return abstract_params(self.network_spec, self.inputs)
        return adapter_shapes(self.network_spec, self.inputs, self.rank, self.full)


@dataclasses.dataclass(frozen=True)
class Roles:
    """Parameters by role -> the networks that a loss sees. Equal ones share compiled updates.

    Attributes:
      student: what the student is.
      teacher: what the frozen teacher is, None without one.
      fake: whether there is a fake network; it is what the student is, and starts as it does unless
        it is given a start of its own.
      discriminator: the head of the fake network that tells data from samples, a name in
        DISCRIMINATORS; "" without one.
      trained: what student and fake have: weights, or adapters of the weights of "teacher", or of a
        frozen role "base" that is no network of the loss.
      frozen: what the teacher has.
      full: modules that the network a student starts from may lack; with adapters they are trained
        in full, and so they are in the networks that a chain of adapted stages begins with.
      layout: of parameters that are split over devices, which are gathered where they are used, see
        sharded.as_called; None for parameters that are whole.
    """

    student: NetworkSpec
    teacher: NetworkSpec | None = None
    fake: bool = False
    discriminator: str = ""
    trained: Role = Role()
    frozen: Role = Role()
    full: tuple[str, ...] = ()
    layout: Layout | None = None

    def __call__(self, params: Mapping[str, Tree]) -> Nets:
        student = self._bound(self.student, self.trained, params["student"], params)
        teacher = None
        if self.teacher is not None:
            teacher = self._bound(self.teacher, self.frozen, params["teacher"], params)
        return Nets(student, teacher, self._fake(params) if self.fake else None)

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
        """What every role trains, at the start.

        Args:
          key: of what is not taken over.
          inputs: of the student, see Trained.inputs.
          start: parameters that student and fake take over, None for fresh ones; adapters where
            they have them.
          fake: parameters that the fake takes over in place of those, None for none.
          base: the frozen weights that the adapters are of; None without adapters.

        Returns:
          Parameters by role.

        Raises:
          ValueError: where `start`, `fake` or `base` does not fit.
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


@functools.lru_cache(maxsize=64)  # All halvings of a chain have the same.
def role_shapes(
    roles: Roles,
    inputs: tuple[str, ...],
    start: Like | None,
    fake: Like | None = None,
    base: Like | None = None,
) -> dict[str, Tree]:
    """Shapes and types of `roles.initial`, where student and fake start from networks like these.

    None as in `initial`.
    """

    def initial(key: jax.Array, *begun: Tree | None) -> dict[str, Tree]:
        return roles.initial(key, inputs, *begun)

    begun = (None if like is None else like.shapes for like in (start, fake, base))
    return jax.eval_shape(initial, jax.random.key(0), *begun)
