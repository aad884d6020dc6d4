"""The plan of a run: looks up every name and checks every number before anything starts."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence

import jax
from etils import epath
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax.data import DATASETS, Dataset
from distill_jax.data.base import has_images
from distill_jax.data.masks import masks_of
from distill_jax.diffusion.trained import SAMPLERS, Sampler, Trained, name_of
from distill_jax.evaluation.feature_networks import find
from distill_jax.evaluation.protocols import Evaluator, make_evaluator
from distill_jax.evaluation.published import headline
from distill_jax.methods import METHODS, Method
from distill_jax.models import DISCRIMINATORS
from distill_jax.models.adapters import Adapted, merged
from distill_jax.models.build import abstract_params, as_tuples, rounded
from distill_jax.run import snapshots, starting
from distill_jax.run.ancestors import (
    check_base,
    find_fake,
    find_network,
    find_roles,
    find_teacher,
)
from distill_jax.run.cache import CachePlan, plan_cache
from distill_jax.run.cautions import cautions
from distill_jax.run.data import absolute_paths
from distill_jax.run.data import show as show_data
from distill_jax.run.fits import (
    CodecFit,
    ConditionerFit,
    codec_fit,
    conditioner_fit,
    encoded,
)
from distill_jax.run.measurements import show as show_measurements
from distill_jax.run.networks import check_derivative, named, student_network
from distill_jax.run.onto import find_onto
from distill_jax.run.stages import (
    Ancestor,
    Stage,
    check_alike,
    check_conditions,
    check_finetuned,
    check_images,
    chosen,
)
from distill_jax.run.validation import (
    check_complete,
    check_config,
    check_keys,
    check_microbatches,
    check_places,
    check_stage,
    check_values,
)
from distill_jax.runtime import logging, record
from distill_jax.runtime.app import is_message
from distill_jax.runtime.files import absolute
from distill_jax.runtime.options import OptionError, within
from distill_jax.runtime.registry import EVERYTHING, build, foreign, lookup
from distill_jax.runtime.sharding import Layout, make_layout
from distill_jax.training.roles import Roles, role_shapes
from distill_jax.training.update import optimizer
from distill_jax.typing import Tree

MASKED = "masks: masked images are encoded when they are drawn, so a codec stays in memory"


@dataclasses.dataclass(frozen=True)
class Run:
    """A checked config, with its dataset, fits, layout and stages; nothing has started."""

    config: ConfigDict
    workdir: epath.Path
    dataset: Dataset
    codec: CodecFit | None
    conditioner: ConditionerFit | None
    cache: CachePlan | None
    layout: Layout
    stages: tuple[Stage, ...]

    @property
    def parts(self) -> tuple[epath.Path, ...]:
        """Directories of the codec, bases and outer teachers, see loading.load."""
        bases = [stage.under for stage in self.stages if stage.roles.trained.base]
        places = [base.directory for base in bases]
        teachers = [stage.teacher.directory for stage in self.stages if stage.teacher]
        places += [place for place in teachers if place.parent != self.workdir]
        places += [fit.directory for fit in (self.codec, self.conditioner) if fit]
        return tuple(dict.fromkeys(places))

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        """The evaluator of training and report, made once; only the first process needs it."""
        config = self.config
        return make_evaluator(config.data.to_dict(), config.evaluate.features)

    @property
    def allow(self) -> tuple[str, ...]:
        """Names that the run's networks may import: the config's, and those of its samplers."""
        samplers = (name_of(type(stage.trained.sampler)) for stage in self.stages)
        return (*named(self.config), *foreign(samplers))


def make(config: ConfigDict, workdir: epath.PathLike, devices: int | None = None) -> Run:
    """Looks up every name and checks every number of a config, and starts nothing.

    Args:
      config: an unchecked config.
      workdir: workdir of the run; it need not exist.
      devices: number of devices to plan for, None for those here; another number is only a plan.

    Raises:
      KeyError: for an unknown key or name, with a suggestion.
      ValueError: for numbers that do not fit each other.
    """
    check_values(config)
    check_keys(config, configs.base(), "config")
    check_complete(config, configs.base(), "config")
    check_config(config)
    if not config.stages:
        raise ValueError("config.stages is empty: a run needs at least one stage")
    _check_stages(config)
    config, workdir = starting.from_teacher(config), absolute(workdir)
    check_places(config)
    config.data.update(absolute_paths(config.data.to_dict()))
    with within("config.data"):
        data = as_tuples(config.data.to_dict())
        images = build(DATASETS, "dataset", data, allow=EVERYTHING, makes=Dataset)
    with within("config.codec"):
        codec = codec_fit(config.codec.to_dict(), workdir, images)
    with within("config.conditioner"):
        conditioner = conditioner_fit(config.conditioner.to_dict(), workdir, images, codec)
    with within("config.masks"):
        masks = masks_of(config.masks.to_dict())
    dataset = encoded(images, codec, conditioner, masks)
    if config.evaluate.every and not has_images(dataset):
        raise ValueError("config.evaluate.every compares with images, and the data have none")
    if config.evaluate.features:
        find(config.evaluate.features)  # The report needs it at the end.
    layout = make_layout(config.mesh.to_dict(), devices)
    with within("config.cache"):
        given = {"dataset": dataset, "codec": codec, "conditioner": conditioner, "layout": layout}
        told = {"data": config.data.to_dict(), "batch": config.batch_size}
        cache = plan_cache(config.cache.to_dict(), workdir, **given, **told)
    starting.check_teacher(config, dataset, codec)
    stages: list[Stage] = []
    for name in sorted(config.stages):
        with _of_stage(name):
            stage = _plan_stage(config, name, stages, dataset, workdir)
        layout.check_batch(stage.batch_size)
        snapshots.check_stage(stage, config.updates_per_call)
        check_microbatches(stage.batch_size, config.microbatches, layout.ways)
        check_derivative(stage, layout)
        roles = dataclasses.replace(stage.roles, layout=layout)
        stages.append(dataclasses.replace(stage, roles=roles))
    return Run(config, workdir, dataset, codec, conditioner, cache, layout, tuple(stages))


def only(run: Run, names: Sequence[str]) -> Run:
    """Returns a run with only the stages of these names, see stages.chosen; () is all of them."""
    return dataclasses.replace(run, stages=chosen(run.stages, names)) if names else run


def _check_stages(config: ConfigDict) -> None:
    """Raises KeyError or ValueError for invalid names, keys and values of config.stages."""
    known = configs.stage("", "", steps=1, learning_rate=1.0)
    for name in sorted(config.stages, key=str):
        if not re.fullmatch(r"s\d{1,9}_\w{1,200}", str(name)):
            raise ValueError(
                f"stage {name}: expected a name such as s00_{name}, whose number is the stage's "
                "place; config.pipeline adds these numbers"
            )
        with _of_stage(name):
            check_stage(config.stages[name], name, known, configs.base().optimizer)


@contextlib.contextmanager
def _of_stage(name: str) -> Iterator[None]:
    """Puts the name of a stage in front of the messages of a block that do not have its path."""
    try:
        yield
    except (KeyError, ValueError) as error:
        if isinstance(error, OptionError) or not is_message(error):
            raise
        raise type(error)(f"stage {name}: {error.args[0]}") from error


def _plan_stage(
    config: ConfigDict, name: str, before: list[Stage], dataset: Dataset, workdir: epath.Path
) -> Stage:
    """Returns the stage of one entry of config.stages, checked against the stages before it."""
    spec = config.stages[name]
    place = f"config.stages.{name}"
    with within(f"{place}.method"):
        options = as_tuples(spec.method.to_dict())
        method = build(METHODS, "method", options, allow=EVERYTHING, makes=Method)
    model = (spec.model or config.model).to_dict()
    with within(place if spec.model else "config"):
        called = spec.method.name, model, method, dataset.spec
        network_spec = student_network(config, *called)
    trained = method.trained(network_spec.schedule)
    _check_sampler(trained)
    allow = named(config)
    start = teacher = find_teacher(spec, method, before, allow)
    if spec.init:
        start = find_network(spec.init, "init", before, spec.base, allow)
    with within(f"{place}.method"):
        method.check(teacher and teacher.taught)
    if start is not None:
        role = "init" if spec.init else "teacher"
        check = check_alike if method.needs_teacher else check_finetuned
        check(network_spec, start.network_spec, role)
    if teacher is not None:
        if method.needs_teacher:
            check_alike(network_spec, teacher.network_spec, "teacher", ("schedule",))
        check_conditions(method, dataset.spec, teacher.network_spec.spec.data)
    onto = find_onto(spec, method, start, before, allow)
    if onto is not None:
        start, trained = start.whole, onto.trained
    check_images(method, spec.method.name, dataset, teacher)
    keeps = method.keep_weight > 0
    answers = onto if keeps else teacher
    frozen = answers.network_spec if method.needs_teacher or keeps else None
    fake = any(phase.trains == "fake" for phase in method.phases)
    lookup(DISCRIMINATORS, "discriminator", method.discriminator, EVERYTHING)
    discriminator = method.discriminator if method.has_discriminator else ""
    sampler = answers.trained.sampler if method.draws or keeps else None
    given = network_spec, frozen, fake, discriminator
    roles = Roles(*given, full=tuple(spec.new), sampler=sampler, keeps=keeps)
    roles = find_roles(spec, method, roles, teacher, start)
    fake_start = find_fake(spec, roles, before, allow)
    shapes = _shapes(config, roles, trained.inputs, answers, start, fake_start)
    tx = optimizer(**{**config.optimizer, **spec.optimizer})
    check_base(spec.base, teacher, start)
    size = spec.batch_size or config.batch_size
    begun = workdir / name, teacher, start, fake_start, size, model
    return Stage(name, len(before), spec, method, trained, roles, shapes, *begun, tx, onto)


def _shapes(
    config: ConfigDict,
    roles: Roles,
    inputs: tuple[str, ...],
    teacher: Ancestor | None,
    start: Ancestor | None,
    fake: Ancestor | None,
) -> dict[str, Tree]:
    """Returns the shapes and types of the parameters of every role."""

    def frozen(found: Ancestor) -> Tree:
        whole = found.stored
        if found.base is not None:
            whole = jax.eval_shape(merged, Adapted(found.base.stored, whole))
        return jax.eval_shape(lambda params: rounded(params, config.frozen_dtype), whole)

    if roles.trained.base:
        adapters = start.like if start.base else None
        shapes = dict(role_shapes(roles, inputs, adapters, None, start.weights.like))
        shapes[roles.trained.base] = frozen(start.weights)
    else:
        begun = (each and each.like._replace(base=None) for each in (start, fake))
        shapes = dict(role_shapes(roles, inputs, *begun))
    if roles.teacher is not None and roles.frozen.base:
        shapes["teacher"] = teacher.like.shapes
    elif roles.teacher is not None:
        shapes["teacher"] = frozen(teacher)
    return shapes


def _check_sampler(trained: Trained) -> None:
    """Raises ValueError for a sampler that cannot be imported by its name."""
    kind = type(trained.sampler)
    if lookup(SAMPLERS, "sampler", name_of(kind), EVERYTHING, Sampler) is not kind:
        raise ValueError(f"sampler {name_of(kind)} names another class; define it in a module")


def _title(directory: epath.Path) -> str:
    """Returns the name of a stage, or of the directory that has a final/."""
    return (directory.parent if directory.name == "final" else directory).name


def show(run: Run) -> str:
    """Returns the plan as text: one line per stage, then the totals."""
    rows = []
    for stage in run.stages:
        low_high = stage.trained.guidance.w_range
        steps, calls = stage.trained.num_steps, stage.trained.calls
        rows.append(
            (
                stage.name,
                stage.spec.method.name,
                steps if calls == steps else f"{steps} ({calls} calls)",
                "-" if low_high is None else f"{low_high[0]:g} to {low_high[1]:g}",
                f"{stage.spec.steps * stage.updates:,}",
                "-" if stage.start is None else _title(stage.start.directory),
                "done" if stage.finished else "to do",
            )
        )
    titles = ("stage", "method", "sampling steps", "w", "updates", "starts from", "state")
    last = run.stages[-1]
    shapes = abstract_params(last.roles.student, last.trained.inputs)
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    updates = sum(stage.spec.steps * stage.updates for stage in run.stages)
    sizes = " or ".join(map(str, sorted({stage.batch_size for stage in run.stages})))
    mesh = run.layout.mesh
    kind = "planned" if isinstance(mesh, AbstractMesh) else jax.devices()[0].device_kind
    axes = ", ".join(f"{axis} {length}" for axis, length in mesh.shape.items())
    return "\n".join(
        (
            logging.table(titles, rows),
            f"{size:,} parameters ({last.model['name']}), {updates:,} updates of "
            f"{sizes} images {'x'.join(map(str, run.dataset.spec.x.shape))} "
            f"({run.config.data.name}) on {mesh.size} {kind} device(s), mesh: {axes}",
            *starting.show(run.config),
            *show_data(run.config.data.name, run.dataset),
            *([run.cache.show()] if run.cache else []),
            *([MASKED] if run.config.masks else []),
            *([f"published by {headline(name)}"] if (name := run.config.published) else []),
            *show_measurements(run.config.evaluate, run.stages),
            *snapshots.show(run.stages),
            f"workdir {run.workdir}, code {record.short_commit()}",
            *cautions(run.config, run.stages),
        )
    )
