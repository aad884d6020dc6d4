"""Planned stages, and the search for the finished networks that they begin from."""

import dataclasses
from collections.abc import Container, Mapping
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
from distill_jax.runtime.registry import suggestion
from distill_jax.sampling.loading import describe, find_final, find_part
from distill_jax.storage import checkpoint, trees
from distill_jax.training.averages import gamma_of
from distill_jax.training.roles import Like, Role, Roles
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
    """

    directory: epath.Path
    network_spec: NetworkSpec
    trained: Trained
    base: "Ancestor | None" = None
    rank: int = 0
    full: tuple[str, ...] = ()

    @property
    def like(self) -> Like:
        """The description that determines the shapes of the network's parameters."""
        base = None if self.base is None else self.base.like
        return Like(self.network_spec, self.trained.inputs, base, self.rank, self.full)

    @property
    def stored(self) -> Tree:
        """Shapes and types of the parameters: as in final/, or float32 for a stage of this run."""
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


def find_teacher(
    spec: ConfigDict, method: Method, before: list[Stage], allow: Container[str]
) -> Ancestor | None:
    """Returns the network that is a stage's teacher; None for a stage without a teacher."""
    if not spec.teacher and not method.needs_teacher:
        return None
    if not spec.teacher and not before:
        raise ValueError(
            f"method {spec.method.name!r} needs a teacher, and no stage comes before; put one "
            "there, or set `teacher` to the directory of a finished network"
        )
    return find_network(spec.teacher or before[-1].name, "teacher", before, spec.base, allow)


def find_network(
    name: str, option: str, before: list[Stage], base: str = "", allow: Container[str] = ()
) -> Ancestor:
    """Returns the network that an option names: an earlier stage, or a directory.

    Args:
      name: value of the option.
      option: name of the option, for messages.
      before: earlier stages.
      base: directory of the network that the adapters change; "" to find it in the workdir.
      allow: names that a directory may import, see `load`.
    """
    named = {stage.name: stage for stage in before}
    short = {stage.name.partition("_")[2]: stage for stage in before}
    stage = named.get(name) or short.get(name)
    if stage is not None:
        own, role = stage.roles.student, stage.roles.trained
        under = stage.start.weights if role.base else None
        full = stage.roles.full if role.base else ()
        return Ancestor(stage.directory, own, stage.trained, under, role.rank, full)
    if "/" not in name:
        raise ValueError(
            f"{option} {name!r} is no earlier stage; earlier ones: {', '.join(short)}"
            f"{suggestion(name, short)}; a directory needs a slash in it"
        )
    student = describe(name, parts=[base] if base else [], allow=allow)
    found = Ancestor(student.directory, student.network_spec, student.trained)
    adapters = student.manifest.adapters
    if adapters is None:
        return found
    place = str(find_part(student, adapters.base))
    weights = find_network(place, option, [], allow=allow)
    return dataclasses.replace(found, base=weights, rank=adapters.rank, full=adapters.full)


def check_base(base: str, *found: Ancestor | None) -> None:
    """Raises ValueError for a `base` that no network with adapters uses."""
    if base and not any(ancestor and ancestor.base for ancestor in found):
        raise ValueError(
            f"base is {base!r}, and neither the teacher nor `init` has adapters; leave base out"
        )


def find_roles(
    spec: ConfigDict, method: Method, roles: Roles, teacher: Ancestor | None, start: Ancestor | None
) -> Roles:
    """Returns the roles of a stage, each with its own weights or with adapters of a frozen network.

    The frozen weights exist once if teacher and student have adapters of the same network, or if
    the student has adapters of the teacher's weights.
    """
    if not spec.lora:
        return roles
    if spec.lora < 0 or not method.needs_teacher:
        raise ValueError(
            f"lora is {spec.lora}; expected the rank of adapters on the weights of a teacher, or 0"
        )
    if start.rank not in (0, spec.lora):
        raise ValueError(
            f"lora is {spec.lora}, and the network that the student starts from has adapters of "
            f"rank {start.rank}, which are trained on; take {start.rank}, or 0 to merge them first"
        )
    same = start.weights.directory == teacher.weights.directory
    base = "teacher" if same and teacher.base is None else "base"
    frozen = Role("base", teacher.rank) if same and teacher.base else Role()
    full = tuple(dict.fromkeys((*start.full, *spec.new)))
    return dataclasses.replace(roles, trained=Role(base, spec.lora), frozen=frozen, full=full)


def find_fake(
    spec: ConfigDict, roles: Roles, before: list[Stage], allow: Container[str]
) -> Ancestor | None:
    """Returns the network whose fake the stage's fake starts from; None without `init_fake`."""
    for option in ("init_fake", "keep_fake"):
        if spec[option] and not roles.fake:
            raise ValueError(
                f"{option} is {spec[option]!r}, and method {spec.method.name!r} trains no fake "
                f"network; leave {option} out"
            )
    if not spec.init_fake:
        return None
    if spec.lora:
        raise ValueError(
            f"init_fake is {spec.init_fake!r} and lora {spec.lora}: adapters of student and fake "
            "share the same frozen weights; leave out one of the two"
        )
    found = find_network(spec.init_fake, "init_fake", before, allow=allow)
    _check_kept(spec.init_fake, found.directory, before)
    check_alike(roles.student, found.network_spec, "init_fake")
    return found


def _check_kept(name: str, directory: epath.Path, before: list[Stage]) -> None:
    """Raises ValueError unless the directory has a fake network, or its stage will save one."""
    stage = next((stage for stage in before if stage.directory == directory), None)
    if stage is not None and not stage.finished:
        if not stage.spec.keep_fake:
            raise ValueError(
                f"init_fake is {name!r}, which does not keep its fake network; set keep_fake=True "
                "in that stage"
            )
    elif checkpoint.read_manifest(find_final(directory)).get("fake") is None:
        raise ValueError(
            f"init_fake is {name!r}, and the final/ there has no fake network; set keep_fake=True "
            "in its stage, move final/ away and run the stage again with --resume=force: it writes "
            "final/ again from the last state"
        )
