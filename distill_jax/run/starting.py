"""Chains from a finished network, config.teacher: what its manifest sets, and what does not fit."""

from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from distill_jax.data import DATASETS, Dataset
from distill_jax.diffusion.spec import DataSpec, Leaf
from distill_jax.methods import METHODS, Method
from distill_jax.models import NETWORKS
from distill_jax.models.build import as_tuples
from distill_jax.run.ancestors import find_network, names_directory
from distill_jax.run.fits import CodecFit
from distill_jax.run.networks import named, student_network
from distill_jax.run.stages import (
    check_same_conditions,
    check_something_to_guide,
    in_words,
)
from distill_jax.runtime.app import is_message
from distill_jax.runtime.options import rules_of
from distill_jax.runtime.registry import EVERYTHING, build, lookup
from distill_jax.runtime.trees import span
from distill_jax.sampling.loading import describe
from distill_jax.sampling.student import Student
from distill_jax.storage import checkpoint

# Options of a network that change how it computes, and not what: those of the config stay.
KEPT = ("dtype", "remat", "attention_kernel")
REFERENCES = ("teacher", "init", "init_fake", "onto")  # Options of a stage that name networks.


def from_teacher(config: ConfigDict) -> ConfigDict:
    """Returns the config whose chain starts from config.teacher; the same config without one.

    The network's manifest sets model, schedule, parameterization, and whether the data have labels.
    A first stage that trains a teacher is left out. The stages that started from it, or from the
    directory that the first stage names, start from config.teacher. If the first stage fine-tunes,
    the config's parameterization and zero_snr stay, because only such a stage changes them.

    Args:
      config: a config whose stages have valid keys.

    Raises:
      FileNotFoundError: if the directory has no finished network.
      ValueError: if nothing is left to train; without config.teacher, if the first stage trains a
        teacher that no other stage uses.
    """
    if not config.teacher:
        _check_used(config)
        return config
    config = config.copy_and_resolve_references().unlock()
    manifest = _described(config).manifest
    _rename(config)
    kept = {key: config.model[key] for key in KEPT if key in config.model}
    takes = rules_of(lookup(NETWORKS, "network", manifest.model["name"], EVERYTHING))
    schedule = as_tuples(manifest.schedule)
    first = config.stages[min(config.stages)]
    if not _finetunes(first):
        config.parameterization = manifest.parameterization
    elif config.schedule.get("name") == schedule["name"] and "zero_snr" in config.schedule:
        schedule["zero_snr"] = config.schedule.zero_snr
    model = {**as_tuples(manifest.model), **{k: kept[k] for k in kept if k in takes}}
    config.model, config.schedule = ConfigDict(model), ConfigDict(schedule)
    if not (config.codec or config.conditioner):
        _set_size(config, manifest.spec)
        if not (_finetunes(first) and first.new):  # Modules of labels that it learns there.
            _set_labels(config, manifest.spec)
    return config


def show(config: ConfigDict) -> list[str]:
    """Returns what the manifest of config.teacher sets, as lines of a config; [] without one."""
    if not config.teacher:
        return []
    student = _described(config)
    keys = ["model", "schedule", "parameterization"]
    lines = [f"  config.{key} = {_plain(config[key])!r}" for key in keys]
    if "labelled" in config.data:
        lines.append(f"  config.data.labelled = {config.data.labelled}")
    guidance = student.trained.guidance
    dropout = "with" if guidance.null else "without"
    facts = [in_words(student.manifest.spec), f"trained {dropout} label dropout"]
    facts += [f"takes w in {tuple(guidance.w_range)}"] if guidance.w_range else []
    return [f"from {config.teacher}: {', '.join(facts)}; the config has its values:", *lines]


def check_teacher(config: ConfigDict, dataset: Dataset, codec: CodecFit | None) -> None:
    """Raises one ValueError for everything in a chain that does not fit config.teacher.

    Args:
      config: the result of from_teacher.
      dataset: data of the run, as its networks take them.
      codec: codec of the run; None for pixels.
    """
    if not config.teacher:
        return
    student = _described(config)
    found = list(_misfits_of_stages(config, student.manifest.spec))
    if any(_starts(config, spec) for spec in config.stages.values()):
        found[:0] = _misfits_of_data(dataset.spec, student, codec)
    if found:
        count = "" if len(found) == 1 else f" in {len(found)} places"
        raise ValueError(
            f"the network of config.teacher, {config.teacher}, does not fit this config{count}: "
            + "; ".join(found)
        )


def _described(config: ConfigDict) -> Student:
    """Returns the student in config.teacher, without its parameters."""
    return describe(config.teacher, allow=named(config))


def _plain(value: Any) -> Any:
    """Returns a value of a config as plain data."""
    return value.to_dict() if isinstance(value, ConfigDict) else value


def _trains(entry: ConfigDict) -> bool:
    """Returns whether a stage trains a new network: a teacher."""
    return entry.method.get("name") == "diffusion" and not (entry.teacher or entry.init)


def _finetunes(entry: ConfigDict) -> bool:
    """Returns whether a stage trains a finished network on data, and calls no teacher."""
    return entry.method.get("name") == "diffusion" and bool(entry.teacher)


def _starts(config: ConfigDict, entry: ConfigDict) -> bool:
    """Returns whether config.teacher is the teacher that a stage calls."""
    return entry.teacher == _place(config) and not _finetunes(entry)


def _place(config: ConfigDict) -> str:
    """Returns config.teacher as a stage names it, where a slash means a directory."""
    return config.teacher if names_directory(config.teacher) else f"./{config.teacher}"


def _rename(config: ConfigDict) -> None:
    """Lets the stages of a chain start from config.teacher in place of its first teacher."""
    place, name = _place(config), min(config.stages)
    old = {config.stages[name].teacher} - {""}
    if _trains(config.stages[name]):
        old = {name, name.partition("_")[2]}
        del config.stages[name]
    if not config.stages:
        raise ValueError(
            f"config.teacher is {config.teacher!r}, and {name} is the only stage, which trains a "
            "teacher: nothing is left to do; take a config with a stage after it"
        )
    first = config.stages[min(config.stages)]
    first.teacher = first.teacher or ("" if _trains(first) else place)
    for entry in config.stages.values():
        entry.update({key: place for key in REFERENCES if entry[key] in old})


def _check_used(config: ConfigDict) -> None:
    """Raises ValueError if the first stage trains a teacher that no other stage uses.

    That is so if the stages after it name the directory of another one.
    """
    name, *rest = sorted(config.stages)
    names = {name, name.partition("_")[2]}
    others = [config.stages[each] for each in rest]
    used = {entry[key] for entry in others for key in REFERENCES}
    used |= {name} if others and not others[0].teacher else set()
    elsewhere = [each for each in rest if names_directory(config.stages[each].teacher)]
    if _trains(config.stages[name]) and elsewhere and not names & used:
        place = config.stages[elsewhere[0]].teacher
        raise ValueError(
            f"stage {name} trains a teacher that no other stage uses: the teacher of "
            f"{elsewhere[0]} is {place!r}. Give --config.teacher={place} in its place: the chain "
            f"then starts from there, with the network of that directory, and without {name}"
        )


def _set_size(config: ConfigDict, theirs: DataSpec) -> None:
    """Gives noise, which stands for any images, the shape that a network takes."""
    height, width, channels = theirs.x.shape
    if config.data.get("name") == "noise" and height == width:
        config.data.update(size=height, channels=channels)


def _set_labels(config: ConfigDict, theirs: DataSpec) -> None:
    """Sets whether the data have labels to what a network takes."""
    classes = dict(theirs.cond).get("label", Leaf()).classes or 0
    if {*dict(theirs.cond)} - {"label"}:
        return
    if config.data.get("name") == "noise":
        given = {key: config.data[key] for key in config.data if key != "num_labels"}
        config.data = ConfigDict({**given, "num_classes": classes})
    elif "labelled" in rules_of(lookup(DATASETS, "dataset", config.data.get("name"), EVERYTHING)):
        config.data.labelled = classes > 0


def _misfits_of_data(mine: DataSpec, student: Student, codec: CodecFit | None) -> Iterator[str]:
    """Yields what data and codec of a run have that the network was not trained on."""
    theirs = student.manifest
    place = student.directory / theirs.codec.path if theirs.codec else "DIRECTORY"
    have, needs = mine.x.shape, theirs.spec.x.shape
    shapes = ["x".join(map(str, shape)) for shape in (needs, have)]
    if mine.bounded != theirs.spec.bounded:
        kinds = ["pixels" if spec.bounded else "latents" for spec in (theirs.spec, mine)]
        advice = f'set config.codec to {{"path": "{place}"}}'
        if theirs.spec.bounded:
            advice = "take images" if codec is None else "leave config.codec out"
        pairs = [" ".join(pair) for pair in zip(kinds, shapes, strict=True)]
        yield f"it works on {pairs[0]}, and the data are {pairs[1]}: {advice}"
    elif have != needs:
        sized = codec is None and have[2] == needs[2] and needs[0] == needs[1]
        advice = f"set config.data.size to {needs[0]}" if sized else "take other images"
        yield f"it works on {shapes[0]}, and the data are {shapes[1]}: {advice}"
    elif theirs.codec and codec is not None and codec.finished:
        same = theirs.codec.fingerprint in checkpoint.fingerprints(codec.final)
        yield from () if same else (f"its codec is {place}, and the run's {codec.directory}",)
    if problem := _problem(check_same_conditions, mine, theirs.spec):
        yield problem


def _misfits_of_stages(config: ConfigDict, theirs: DataSpec) -> list[str]:
    """Returns what every stage refuses in the network, each problem with its stages."""
    problems: dict[str, list[str]] = {}
    for name in sorted(config.stages):
        spec = config.stages[name]
        try:
            options = as_tuples(spec.method.to_dict())
            method = build(METHODS, "method", options, allow=EVERYTHING, makes=Method)
        except (KeyError, ValueError):
            continue  # The plan says what is wrong with the options.
        model = (spec.model or config.model).to_dict()
        checks: list[tuple[Any, ...]] = [
            (student_network, config, spec.method.name, model, method, theirs)
        ]
        if _starts(config, spec):
            found = find_network(spec.teacher, "teacher", [], spec.base, named(config))
            checks += [(check_something_to_guide, method, theirs), (method.check, found.taught)]
        for problem in filter(None, (_problem(*check) for check in checks)):
            problems.setdefault(problem, []).append(name)
    return [f"{span(names)}: {problem}" for problem, names in problems.items()]


def _problem(check: Callable[..., Any], *arguments: Any) -> str | None:
    """Returns the message of a check that raises one for the user; None if it passes."""
    try:
        check(*arguments)
    except (KeyError, ValueError) as error:
        if not is_message(error):
            raise
        return str(error.args[0])
    return None
