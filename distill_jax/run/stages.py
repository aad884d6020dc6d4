"""Planned stages, and the checks of the networks that they begin from."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from distill_jax.data import Dataset
from distill_jax.data.base import has_images
from distill_jax.diffusion.denoiser import NetworkSpec
from distill_jax.diffusion.prediction import PARAMETERIZATIONS
from distill_jax.diffusion.schedule import LinearBeta
from distill_jax.diffusion.spec import INPAINT, DataSpec
from distill_jax.diffusion.trained import Trained
from distill_jax.methods import Method
from distill_jax.runtime.registry import lookup
from distill_jax.storage import trees
from distill_jax.training.averages import gamma_of
from distill_jax.training.roles import Like, Roles
from distill_jax.training.update import Rates
from distill_jax.typing import Tree


@dataclasses.dataclass(frozen=True)
class Stage:
    """A checked entry of config.stages.

    Attributes:
      name: name, such as s02_n0032.
      index: number of the stage, from 0.
      spec: entry in the config.
      method: method, with its losses.
      trained: description of the finished network.
      roles: networks of the stage.
      shapes: shapes of the parameters by role, both trained and frozen.
      directory: output directory.
      teacher: finished network that is the teacher; None without one.
      start: finished network whose weights the student starts from: the teacher, or the option
        `init`; None for fresh weights.
      fake_start: finished network whose fake network the stage's starts from; None if it starts
        like the student.
      batch_size: batch size, from the option `batch_size` or the config.
      model: options of the network, from the option `model` or the config.
      tx: optimizer, from the config and the option `optimizer`.
      onto: finished network, to whose weights the change of this stage is added; None if the
        trained weights are the result.
    """

    name: str
    index: int
    spec: ConfigDict
    method: Method
    trained: Trained
    roles: Roles
    shapes: Mapping[str, Tree]
    directory: epath.Path
    teacher: "Ancestor | None"
    start: "Ancestor | None"
    fake_start: "Ancestor | None"
    batch_size: int
    model: Mapping[str, Any]
    tx: Any
    onto: "Ancestor | None" = None

    @property
    def under(self) -> "Ancestor":
        """The network whose weights the finished adapters change."""
        return (self.onto or self.start).weights

    @property
    def called(self) -> "Ancestor | None":
        """The finished network that the losses call as their teacher; None if they call none."""
        return self.onto if self.roles.keeps else self.teacher

    @property
    def updates(self) -> int:
        """Number of updates, and of batches, in one iteration."""
        return sum(phase.updates_per_iteration for phase in self.method.phases)

    @property
    def rates(self) -> Rates:
        """Learning rate, EMA decay and other settings of the optimizer."""
        spec = self.spec
        return Rates(
            learning_rate=spec.learning_rate,
            warmup=spec.warmup,
            decay_to=spec.decay_to,
            steps=spec.steps,
            ema_decay=spec.ema_decay,
            weight_decay=spec.weight_decay,
            ema_ramp=spec.ema_ramp,
            gammas=tuple(map(gamma_of, spec.posthoc)),
        )

    @property
    def finished(self) -> bool:
        """Whether the finished network is complete on disk."""
        return (self.directory / "final" / "manifest.json").exists()


@dataclasses.dataclass(frozen=True)
class Ancestor:
    """A network that a stage begins from, described even before it is trained.

    Attributes:
      directory: directory of the stage, or final/.
      network_spec: network, parameterization and shapes.
      trained: description of the task that the network was trained for.
      base: network whose weights the adapters change; None without adapters.
      rank: rank of the adapters.
      full: modules that are trained in full among the adapters.
      merged: network whose weights its adapters are merged into when it is read; None if it has
        none, or keeps them.
    """

    directory: epath.Path
    network_spec: NetworkSpec
    trained: Trained
    base: "Ancestor | None" = None
    rank: int = 0
    full: tuple[str, ...] = ()
    merged: "Ancestor | None" = None

    @property
    def like(self) -> Like:
        """The description that determines the shapes of the network's parameters."""
        base = None if self.base is None else self.base.like
        return Like(self.network_spec, self.trained.inputs, base, self.rank, self.full)

    @property
    def stored(self) -> Tree:
        """Shapes and types of the parameters: as in final/, or float32 for a stage of this run."""
        if self.merged:
            return self.merged.stored
        final = (self.directory / "manifest.json").exists()
        shapes = self.like.shapes
        return trees.as_stored(self.directory / "params", shapes) if final else shapes

    @property
    def taught(self) -> Trained:
        """The record of its training as methods check it: latents are never clipped."""
        trained = self.trained
        return trained if self.network_spec.spec.data.bounded else trained._replace(saturated=False)

    @property
    def weights(self) -> "Ancestor":
        """The network with the frozen weights: `base`, or this network if it has no adapters."""
        return self.base or self

    @property
    def whole(self) -> "Ancestor":
        """The network without adapters: they are merged into its weights."""
        return dataclasses.replace(self, base=None, rank=0, full=(), merged=self.base)


def chosen(stages: Sequence[Stage], names: Sequence[str]) -> tuple[Stage, ...]:
    """Returns the stages with these names, such as s01_guided or guided, in the order of the run.

    Raises:
      KeyError: for an unknown name.
      ValueError: for a stage that begins from one that is neither finished nor chosen.
    """
    known = {name: stage.name for stage in stages for name in (stage.name, stage.spec.name)}
    wanted = [lookup(known, "stage", name) for name in names]
    found = tuple(stage for stage in stages if stage.name in wanted)
    ready = {stage.directory for stage in stages if stage.name in wanted or stage.finished}
    for stage in found:
        begins = stage.teacher, stage.start, stage.fake_start, stage.onto
        for place in (other.directory for other in begins if other):
            if place.parent == stage.directory.parent and place not in ready:
                raise ValueError(
                    f"stage {stage.name} begins from {place.name}, which is not finished: "
                    f"--only={place.name},{stage.name} trains both"
                )
    return found


def check_alike(
    student: NetworkSpec,
    other: NetworkSpec,
    role: str,
    names: tuple[str, ...] = ("schedule", "parameterization"),
) -> None:
    """Raises ValueError unless both networks have the same values of these attributes."""
    heads = {head: name for name, head in PARAMETERIZATIONS.items()}
    for name in names:
        mine, theirs = getattr(student, name), getattr(other, name)
        if mine != theirs:
            mine, theirs = heads.get(mine, mine), heads.get(theirs, theirs)
            raise ValueError(
                f"the config's {name} is {mine}, the {role}'s {theirs}; the student starts from "
                f"its {role} or is compared with it, so set config.{name} to {theirs}"
            )


def check_finetuned(student: NetworkSpec, other: NetworkSpec, role: str) -> None:
    """Raises ValueError unless a network that is only fine-tuned may start from the other one.

    It learns from data, so it may have another parameterization, and the schedule with a terminal
    SNR of zero.
    """
    theirs = other.schedule
    rescaled = isinstance(theirs, LinearBeta) and dataclasses.replace(theirs, zero_snr=True)
    if student.schedule != rescaled:
        check_alike(student, other, role, ("schedule",))


def check_conditions(method: Method, mine: DataSpec, theirs: DataSpec) -> None:
    """Raises ValueError unless data and teacher have the conditions that the method needs."""
    if method.needs_teacher:
        check_same_conditions(mine, theirs)
    check_something_to_guide(method, mine)


def check_same_conditions(mine: DataSpec, theirs: DataSpec) -> None:
    """Raises ValueError unless data and teacher have the same conditions."""
    if mine.cond != theirs.cond:
        raise ValueError(
            f"the data has {in_words(mine)}, the teacher {in_words(theirs)}; take data with the "
            "teacher's conditions, or first fine-tune the teacher on this data: a diffusion stage "
            "whose `new` names the module of its conditions"
        )


def check_something_to_guide(method: Method, data: DataSpec) -> None:
    """Raises ValueError for a method that guides, and data without conditions."""
    if method.guides and not data.null:
        raise ValueError(
            "neither data nor teacher has conditions, so there is nothing to guide by; leave out "
            "w_range, w or kappa, or take data with labels"
        )


def check_images(method: Method, name: str, dataset: Dataset, teacher: Ancestor | None) -> None:
    """Raises ValueError for data without images that do not fit the method or the teacher."""
    if method.data_free and INPAINT in dict(dataset.spec.cond):
        raise ValueError(
            f"method {name!r} trains without images, and networks that inpaint take masked images; "
            "take a method that trains on images, or leave config.masks out"
        )
    if has_images(dataset):
        return
    if not method.data_free:
        raise ValueError(
            f"method {name!r} trains on images, and the data have prompts only; take data with "
            "images, or a method without, such as boot and sid_lsg, and a finished teacher"
        )
    mine = dataset.spec.x.shape
    if teacher is not None and mine != (theirs := teacher.network_spec.spec.shape):
        raise ValueError(
            f"the data stand for examples {'x'.join(map(str, mine))}, and the teacher draws "
            f"{'x'.join(map(str, theirs))}; correct config.data.size and channels, or name the "
            "teacher's codec"
        )


def in_words(spec: DataSpec) -> str:
    """Returns the conditions of a dataset or network in words."""
    words = [
        f"{leaf.classes} classes of {name}" if leaf.classes else f"{name} {leaf.shape}"
        for name, leaf in spec.cond
    ]
    return ", ".join(words) or "no conditions"
