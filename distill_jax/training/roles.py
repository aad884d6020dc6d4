"""The roles of a stage: parameters by role become the networks that a loss is given."""

import dataclasses
import functools
from collections.abc import Mapping

import jax

from distill_jax.diffusion.denoiser import Denoiser, Head, NetworkSpec
from distill_jax.methods import Nets
from distill_jax.models import DISCRIMINATORS
from distill_jax.models.adapters import merge, new_adapters
from distill_jax.models.build import abstract_params, initial_params
from distill_jax.models.graft import graft
from distill_jax.runtime.registry import lookup
from distill_jax.runtime.sharding import Layout
from distill_jax.typing import Cond, Image, Time, Tree

Like = tuple[NetworkSpec, tuple[str, ...]]  # What a network is, and its inputs: see Method.inputs.


@dataclasses.dataclass(frozen=True)
class Roles:
    """Parameters by role -> the networks that a loss sees. Equal ones share compiled updates.

    Attributes:
      student: what the student is.
      teacher: what the frozen teacher is, None without one.
      fake: whether there is a fake network; it is what the student is, and starts as it does unless
        it is given a start of its own.
      critic: the head of the fake network that tells data from samples, a name in DISCRIMINATORS;
        "" without one.
      rank: of the adapters that student and fake train in place of their weights, which stay the
        teacher's (distill_jax.models.adapters); 0 trains the weights.
      new: modules that the network a student starts from may lack; they are trained in full.
      layout: gathers parameters that are split over devices where they are used, see
        Layout.gather; None leaves them as they are.
    """

    student: NetworkSpec
    teacher: NetworkSpec | None = None
    fake: bool = False
    critic: str = ""
    rank: int = 0
    new: tuple[str, ...] = ()
    layout: Layout | None = None

    def __call__(self, params: Mapping[str, Tree]) -> Nets:
        if self.layout is not None:
            params = self.layout.gather(params)
        student = self.student(self.weights(params, params["student"]))
        teacher = None if self.teacher is None else self.teacher(params["teacher"])
        return Nets(student, teacher, self._fake(params) if self.fake else None)

    def weights(self, params: Mapping[str, Tree], trained: Tree) -> Tree:
        """The weights of a network of which `trained` is trained."""
        return merge(params["start"], trained) if self.rank else trained

    @property
    def _head(self) -> Head:
        return lookup(DISCRIMINATORS, "discriminator", self.critic)(self.student.spec.shape)

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
        params = initial_params(key, self.student, inputs)
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
            features = self.student(params).features(*self.student.spec.example(inputs))
            roles["fake"]["critic"] = self._head.init(jax.random.fold_in(key, 2), features)
        return roles


@functools.lru_cache(maxsize=64)  # All halvings of a chain have the same.
def role_shapes(
    roles: Roles, inputs: tuple[str, ...], start: Like | None, fake: Like | None = None
) -> dict[str, Tree]:
    """Shapes and types of `roles.initial`, where student and fake start from networks like these.

    Each is what the network is and what it takes beside z, t and label; None as in `initial`.
    """

    def initial(key: jax.Array, *begun: Tree | None) -> dict[str, Tree]:
        return roles.initial(key, inputs, *begun)

    begun = (None if like is None else abstract_params(*like) for like in (start, fake))
    return jax.eval_shape(initial, jax.random.key(0), *begun)
