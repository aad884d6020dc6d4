"""The search for the finished networks that a stage begins from."""

import dataclasses
from collections.abc import Container

from etils import epath
from ml_collections import ConfigDict

from distill_jax.methods import Method
from distill_jax.run.stages import Ancestor, Stage, check_alike
from distill_jax.runtime.registry import suggestion
from distill_jax.sampling.loading import describe, find_final, find_part, packaged
from distill_jax.storage import checkpoint
from distill_jax.training.roles import Role, Roles


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
    """Returns the network that an option names: a stage, a directory, or a name in `packaged`.

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
        under = stage.under if role.base else None
        full = stage.roles.full if role.base else ()
        return Ancestor(stage.directory, own, stage.trained, under, role.rank, full)
    if not names_directory(name):
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


def names_directory(name: str) -> bool:
    """Returns whether an option names a directory, or a network that comes with this package."""
    return "/" in name or name in packaged()


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
    if spec.lora < 0 or start is None:
        raise ValueError(
            f"lora is {spec.lora}; expected the rank of adapters on the weights of a teacher, or 0"
        )
    if start.rank not in (0, spec.lora):
        raise ValueError(
            f"lora is {spec.lora}, and the network that the student starts from has adapters of "
            f"rank {start.rank}, which are trained on; take {start.rank}, or 0 to merge them first"
        )
    same = method.needs_teacher and start.weights.directory == teacher.weights.directory
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
