"""A planned stage, and the finished networks that it begins from: found, and checked against it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from distill_jax.diffusion.denoiser import NetworkSpec
from distill_jax.diffusion.prediction import PARAMETERIZATIONS
from distill_jax.diffusion.spec import DataSpec
from distill_jax.diffusion.trained import Trained
from distill_jax.methods import Method
from distill_jax.runtime.registry import suggestion
from distill_jax.sampling.loading import describe
from distill_jax.sampling.student import Student
from distill_jax.training.roles import Roles
from distill_jax.training.update import Rates
from distill_jax.typing import Tree


@dataclasses.dataclass(frozen=True)
class Stage:
    """One checked entry of config.stages.

    Attributes:
      name: such as s02_n0032.
      index: from 0.
      spec: its entry in the config.
      method: what its losses are.
      trained: what its finished network is.
      bind: its networks.
      shapes: of what its roles train, and of what they are called with beside that.
      directory: where it writes.
      teacher: the directory of its teacher, a finished network; None without one.
      start: the directory of the finished network its student starts from, the teacher but for the
        option `init`; None for a fresh start.
      fake_start: that of the finished network whose fake its fake starts from; None where that is
        the student's start.
      batch_size: of its updates, the config's but for the option `batch_size`.
      model: what its network is made from, the config's but for the option `model`.
      tx: its optimizer, the config's but for the option `optimizer`.
    """

    name: str
    index: int
    spec: ConfigDict
    method: Method
    trained: Trained
    roles: Roles
    shapes: Mapping[str, Tree]
    directory: epath.Path
    teacher: epath.Path | None
    start: epath.Path | None
    fake_start: epath.Path | None
    batch_size: int
    model: Mapping[str, Any]
    tx: Any

    @property
    def updates(self) -> int:
        """Updates, and batches, of one iteration."""
        return sum(phase.repeats for phase in self.method.phases)

    @property
    def rates(self) -> Rates:
        """The numbers of its optimizer."""
        spec = self.spec
        return Rates(
            learning_rate=spec.learning_rate,
            warmup=spec.warmup,
            decay_to=spec.decay_to,
            steps=spec.steps,
            ema_decay=spec.ema_decay,
            weight_decay=spec.weight_decay,
            ema_ramp=spec.ema_ramp,
        )

    @property
    def finished(self) -> bool:
        """Whether its network is complete on disk."""
        return (self.directory / "final" / "manifest.json").exists()


@dataclasses.dataclass(frozen=True)
class Ancestor:
    """What a stage must know of a network that it begins from before that one is trained."""

    network_spec: NetworkSpec
    trained: Trained


def check_alike(
    student: NetworkSpec, other: NetworkSpec, role: str, names: tuple[str, ...]
) -> None:
    """Raises ValueError unless both mean the same by a time, or by what else is named."""
    heads = {head: name for name, head in PARAMETERIZATIONS.items()}
    for name in names:
        mine, theirs = getattr(student, name), getattr(other, name)
        if mine != theirs:
            mine, theirs = heads.get(mine, mine), heads.get(theirs, theirs)
            raise ValueError(
                f"the config's {name} is {mine}, the {role}'s {theirs}; the student starts from "
                f"its {role} or is compared with it, so set config.{name} to {theirs}"
            )


def check_conditions(method: Method, mine: DataSpec, theirs: DataSpec) -> None:
    """Raises ValueError unless both have the conditions that the method calls them with."""
    if method.needs_teacher and mine.cond != theirs.cond:
        raise ValueError(
            f"the data has {_shown(mine)}, the teacher {_shown(theirs)}; take data with the "
            "teacher's, or first fine-tune the teacher with a diffusion stage on these, its module "
            "for them in `new`"
        )
    if method.guides and not mine.cond:
        raise ValueError(
            "neither data nor teacher has conditions, so there is nothing to guide by; leave out "
            "w_range, w or kappa, or take data with labels"
        )


def _shown(spec: DataSpec) -> str:
    """The conditions of a dataset or network in words."""
    words = [
        f"{leaf.classes} classes of {name}" if leaf.classes else f"{name} {leaf.shape}"
        for name, leaf in spec.cond
    ]
    return ", ".join(words) or "no conditions"


def find_teacher(
    spec: ConfigDict, method: Method, before: list[Stage]
) -> tuple[epath.Path | None, Ancestor | Student | None]:
    """Where the finished network is or will be, and what it is."""
    if not spec.teacher and not method.needs_teacher:
        return None, None
    if not spec.teacher and not before:
        raise ValueError(
            f"method {spec.method.name!r} needs a teacher, and no stage comes before; put one "
            "there, or set `teacher` to the directory of a finished network"
        )
    return find_network(spec.teacher or before[-1].name, "teacher", before)


def find_network(
    name: str, option: str, before: list[Stage]
) -> tuple[epath.Path, Ancestor | Student]:
    """The finished network that an option names: an earlier stage, or a directory."""
    named = {stage.name: stage for stage in before}
    short = {stage.name.partition("_")[2]: stage for stage in before}
    stage = named.get(name) or short.get(name)
    if stage is not None:
        return stage.directory, Ancestor(stage.roles.student, stage.trained)
    if "/" not in name:
        raise ValueError(
            f"{option} {name!r} is no earlier stage; earlier ones: {', '.join(short)}"
            f"{suggestion(name, short)}; a directory needs a slash in it"
        )
    student = describe(name)
    return student.directory, student


def find_fake(
    spec: ConfigDict, roles: Roles, before: list[Stage]
) -> tuple[epath.Path | None, Ancestor | Student | None]:
    """Where the finished network is or will be whose fake the stage's starts from, and what it is.

    None for a stage without `init_fake`.
    """
    for option in ("init_fake", "keep_fake"):
        if spec[option] and not roles.fake:
            raise ValueError(
                f"{option} is {spec[option]!r}, and method {spec.method.name!r} trains no fake "
                f"network; leave {option} out"
            )
    if not spec.init_fake:
        return None, None
    if roles.rank:
        raise ValueError(
            f"init_fake is {spec.init_fake!r} and lora {roles.rank}: adapters of student and fake "
            "stand on the same weights; leave out one of the two"
        )
    directory, left = find_network(spec.init_fake, "init_fake", before)
    _check_kept(spec.init_fake, directory, before)
    check_alike(roles.student, left.network_spec, "init_fake", ("schedule", "parameterization"))
    return directory, left


def _check_kept(name: str, directory: epath.Path, before: list[Stage]) -> None:
    """Raises ValueError unless the stage leaves its fake network there, or has done so."""
    stage = next((stage for stage in before if stage.directory == directory), None)
    if stage is not None and not stage.finished:
        if not stage.spec.keep_fake:
            raise ValueError(
                f"init_fake is {name!r}, which does not keep its fake network; set keep_fake=True "
                "in that stage"
            )
    elif describe(directory).manifest.fake is None:
        raise ValueError(
            f"init_fake is {name!r}, and the final/ there has no fake network; set keep_fake=True "
            "in its stage, move its final/ away and run it again with --resume=force: it is "
            "written anew from the last state"
        )
