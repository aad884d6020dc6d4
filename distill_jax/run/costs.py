"""Costs of a plan, before the run: parameters, FLOPs, bytes per device, and hours.

FLOPs are counted in the gradient of the method's loss, traced on shapes. They include every network
call of the method and every recomputation of activations.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from distill_jax.diffusion.denoiser import NetworkSpec
from distill_jax.diffusion.spec import Leaf
from distill_jax.diffusion.trained import Renoise
from distill_jax.methods import Method, Phase
from distill_jax.models.build import abstract_params
from distill_jax.run import measurements
from distill_jax.run.devices import DEVICES, Target, hours
from distill_jax.run.flops import EXAMPLES, flops, flops_of
from distill_jax.run.memory import peak_bytes
from distill_jax.run.plan import Roles, Run, Stage
from distill_jax.runtime import logging
from distill_jax.runtime.sharding import Layout
from distill_jax.runtime.trees import STACK, by_module, by_name, is_stacked, layers_of, span
from distill_jax.training.update import new_state
from distill_jax.typing import Batch, Tree

FLOP = ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP")
BYTES = ("B", "KiB", "MiB", "GiB", "TiB")


class Cost(NamedTuple):
    """The cost of a stage. Stages that run the same programs share one object.

    Attributes:
      flops: FLOPs of one iteration's updates per phase, over all devices (mean over its programs).
      kept: bytes on each device between two updates, by kind.
      step: additional bytes on each device within an update, by kind; see cost_with.
      per_image: bytes of the activations of one example.
    """

    flops: tuple[int, ...]
    kept: dict[str, int]
    step: dict[str, int]
    per_image: int = 0


def measure(run: Run) -> dict[str, Cost]:
    """Returns the cost of every stage by name; it takes seconds and allocates no array."""
    costs, alike = {}, {}
    for stage in run.stages:
        structure = jax.tree.structure((stage.method, stage.shapes))
        sizes = stage.batch_size, len(stage.spec.posthoc), *jax.tree.leaves(stage.shapes)
        key = (stage.method.phases, stage.roles, structure, sizes)
        if key not in alike:
            alike[key] = _measure(run, stage)
        costs[stage.name] = alike[key]
    return costs


def _measure(run: Run, stage: Stage) -> Cost:
    """Returns the cost of one stage."""
    traces, size = traced(run, stage), stage.batch_size
    flop = tuple(
        phase.updates_per_iteration
        * sum(flops_of(each, size) for each in each_of)
        // phase.variants
        for phase, each_of in traces
    )
    return cost_with(run, stage, activations(traces, size))._replace(flops=flop)


def cost_with(run: Run, stage: Stage, per_image: int) -> Cost:
    """Returns the cost of a stage without its FLOPs, given the bytes of an example's activations.

    "gradients" are the device's shards. "activations" is the growth of the trace's peak with the
    batch, for the device's examples of one microbatch. "gathered" are the weights of the largest
    layer or block that is split over fsdp, or all of them if layers do not gather their weights.
    All are those of the phase that needs most.
    """
    _, _, state, frozen, batch = arguments(run, stage)
    kept = {
        "parameters": state.params,
        "frozen": frozen,
        "optimizer": state.opt,
        "EMA": state.ema,
        "batch": batch._replace(index=None),  # No loss reads the index, so no program takes it.
    }
    if run.config.evaluate.keep_best:
        kept["best EMA"] = state.ema
    if any(each.spec.posthoc for each in run.stages):  # All rows have the same columns.
        kept["post-hoc EMAs"] = state.averages
    trained = {phase.trains for phase in stage.method.phases}
    rows = stage.batch_size // run.layout.ways // run.config.microbatches
    step = {
        "gradients": max(_bytes_per_device(state.params[role]) for role in trained),
        "activations": per_image * rows,
        "gathered": _gathered(run.layout, stage),
    }
    return Cost((), {name: _bytes_per_device(tree) for name, tree in kept.items()}, step, per_image)


def traced(run: Run, stage: Stage) -> list[tuple[Phase, list[Any]]]:
    """Traces every phase of a stage on EXAMPLES examples, see `gradients`."""
    given = arguments(run, dataclasses.replace(stage, batch_size=EXAMPLES))
    method, _, state, frozen, batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), given
    )
    networks = stage.roles.student, stage.roles.teacher
    student, teacher = (each and _traced_once(each) for each in networks)
    roles = dataclasses.replace(stage.roles, student=student, teacher=teacher, layout=None)
    params = {**frozen, **state.params}
    phases = stage.method.phases
    return [(phase, gradients(roles, method, params, batch, phase)) for phase in phases]


def activations(traces: list[tuple[Phase, list[Any]]], size: int) -> int:
    """Returns the bytes that an example adds to the peak of a trace, from `size` to twice that."""
    programs = [each for _, programs in traces for each in programs]
    return max((peak_bytes(each, 2 * size) - peak_bytes(each, size)) // size for each in programs)


def gradients(
    roles: Roles, method: Method, params: Mapping[str, Tree], batch: Batch, phase: Phase
) -> list[Any]:
    """Traces the gradients of a phase, and returns a jaxpr for each of its programs.

    The optimizer is left out, because it has neither products nor convolutions.
    """

    def of(*turn: int) -> Any:
        def loss(trained: Tree, method: Method, params: Mapping, batch: Batch) -> jax.Array:
            nets = roles({**params, phase.trains: trained})
            return phase.loss(method, jax.random.key(0), batch, nets, *turn)[0]

        function = jax.value_and_grad(loss)
        return jax.make_jaxpr(function)(params[phase.trains], method, params, batch).jaxpr

    variants = phase.variants
    return [of(turn) for turn in range(variants)] if variants > 1 else [of()]


def _gathered(layout: Layout, stage: Stage) -> int:
    """Returns the largest number of bytes of gathered weights on a device at once."""
    if layout.mesh.shape["fsdp"] == 1:
        return 0
    networks = {"student": stage.roles.student, "teacher": stage.roles.teacher}
    sizes = [0]
    for role, network_spec in networks.items():
        if network_spec is None or role not in stage.shapes:
            continue
        modules: dict[str, int] = {}
        for name, leaf in by_name(stage.shapes[role]).items():
            module = STACK.split(name)[0] if is_stacked(name) else name.rpartition("/")[0]
            size = leaf.size * leaf.dtype.itemsize // len(layers_of(name))
            modules[module] = modules.get(module, 0) + size
        own = network_spec.network.per_layer
        sizes.append(max(modules.values()) if own else sum(modules.values()))
    return max(sizes)


@functools.cache
def _traced_once(network_spec: NetworkSpec) -> NetworkSpec:
    """Returns the NetworkSpec with jitted functions, so that JAX traces them only once."""
    network = network_spec.network._replace(apply=jax.jit(network_spec.network.apply))
    if network.features is not None:
        network = network._replace(features=jax.jit(network.features))
    return dataclasses.replace(network_spec, network=network)


def arguments(run: Run, stage: Stage) -> tuple:
    """Returns the arguments of a stage's updates, as shapes, types and shardings."""
    method, rates = jax.eval_shape(lambda *numbers: numbers, stage.method, stage.rates)
    trained = {phase.trains: stage.shapes[phase.trains] for phase in stage.method.phases}
    others = stage.tx, len(stage.spec.posthoc)
    state = jax.eval_shape(lambda params: new_state(jax.random.key(0), params, *others), trained)
    frozen = {role: shapes for role, shapes in stage.shapes.items() if role not in trained}

    def rows(leaf: Leaf, num: int, sharding: NamedSharding) -> Any:  # It stands for an array.
        return jax.ShapeDtypeStruct((num, *leaf.shape), np.dtype(leaf.dtype), sharding=sharding)

    spec, layout, whole = run.dataset.spec, run.layout, (stage.batch_size, run.layout.batch)
    index = rows(Leaf((), "int32"), *whole)
    x = None if stage.method.data_free else rows(spec.x, *whole)
    cond = {name: rows(leaf, *whole) for name, leaf in spec.cond}
    null = {name: rows(leaf, 1, layout.replicated) for name, leaf in spec.null.items()}
    batch = Batch(index, x, cond, null)
    return method, rates, layout.abstract(state), layout.abstract(frozen), batch


def _bytes_per_device(tree: Tree) -> int:
    """Returns the bytes of one device's shards."""
    shards = ((x.sharding.shard_shape(x.shape), x.dtype) for x in jax.tree.leaves(tree))
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shards)


def show(run: Run, costs: Mapping[str, Cost], where: Target) -> str:
    """Returns the costs as text: parameters by module, FLOPs and hours by stage, and bytes."""
    last = run.stages[-1]
    shapes = abstract_params(last.roles.student, last.trained.inputs)
    forward = forward_flops(last.roles.student, last.trained.inputs)
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    modules = [(name, f"{n:,}", f"{n / total:.1%}") for name, n in by_module(shapes).items()]
    kept = []
    for names, _, cost in programs(costs):
        rest, step = sum(cost.kept.values()), sum(cost.step.values())
        amounts = (*cost.kept.values(), rest, *cost.step.values(), rest + step)
        kept.append((names, *(scaled(n, BYTES) for n in amounts)))
    return "\n\n".join(
        (
            logging.table(("module", "parameters", "share"), modules),
            f"{scaled(forward, FLOP)} per image and call of the network of {last.name} (matrix "
            "products and convolutions; a multiply-add is 2)",
            *_show_scales(run.stages),
            _show_stages(run, costs, where),
            *_show_measurements(run, costs),
            "Bytes on each device, at rest and in an update (an estimate; --plan=compile has what "
            "the compiler takes):",
            logging.table(("stage", *cost.kept, "at rest", *cost.step, "in an update"), kept),
            *_show_replicated(run, shapes),
        )
    )


def _show_replicated(run: Run, shapes: Tree, most: int = 5) -> Iterator[str]:
    """Yields a line about the replicated arrays of a sharded network."""
    if run.layout.mesh.size > run.layout.mesh.shape["data"]:
        sizes = run.layout.replicated_bytes(shapes)
        largest = ", ".join(f"{name} {scaled(sizes[name], BYTES)}" for name in [*sizes][:most])
        yield (
            f"{len(sizes)} of {len(jax.tree.leaves(shapes))} arrays of the network are whole on "
            f"each, {scaled(sum(sizes.values()), BYTES)} together; the largest: {largest}"
        )


def _show_measurements(run: Run, costs: Mapping[str, Cost]) -> Iterator[str]:
    """Yields a line with the FLOPs of the samples that are measured in training."""
    evaluate = run.config.evaluate
    if found := measurements.measured(evaluate, run.stages):
        total = sum(
            measurements.drawn(evaluate, stage)
            * measurements.count(evaluate, stage)
            * measurements.calls(evaluate, stage)
            * forward_flops(stage.roles.student, stage.trained.inputs)
            for stage in found
        )
        training = sum(stage.spec.steps * sum(costs[stage.name].flops) for stage in run.stages)
        yield (
            f"measurements in training: {scaled(total, FLOP)} of network calls, "
            f"{total / training:.1%} of the training's; the evaluator comes on top"
        )


def _show_scales(stages: Sequence[Stage]) -> Iterator[str]:
    """Yields a line for each stage whose sampler has images of several sizes, such as SwD's."""
    for stage in stages:
        sampler, student = stage.trained.sampler, stage.roles.student
        if isinstance(sampler, Renoise) and len({*sampler.resolutions}) > 1:
            sides, inputs = sampler.resolutions, stage.trained.inputs
            total = sum(forward_flops(student, inputs, side) for side in sides)
            calls = total / forward_flops(student, inputs)
            yield (
                f"a sample of {stage.name} has calls at {', '.join(map(str, sides))}: "
                f"{scaled(total, FLOP)}, {calls / 2:.2f} of two calls at full size"
            )


@functools.lru_cache(maxsize=64)
def forward_flops(network_spec: NetworkSpec, inputs: tuple[str, ...], side: int = 0) -> int:
    """Returns the FLOPs of one call of the network with these inputs, on one image.

    `side` is the side of the image, 0 for that of the data.
    """
    z, *others = network_spec.spec.example(inputs)
    if side:
        z = jnp.zeros((1, side, side, z.shape[-1]))
    return flops(network_spec.network.apply, abstract_params(network_spec, inputs), z, *others)


def _show_stages(run: Run, costs: Mapping[str, Cost], where: Target) -> str:
    """Returns a table: images, FLOPs and hours of every stage, of all, and of the unfinished."""

    def row(name: str, stages: Sequence[Stage], update: str = "") -> tuple[str, ...]:
        images = sum(stage.spec.steps * stage.updates * stage.batch_size for stage in stages)
        total = sum(stage.spec.steps * sum(costs[stage.name].flops) for stage in stages)
        shown = "-" if where.peak is None else f"{hours(total, where):,.2f}"
        return (name, f"{images:,}", update, scaled(total, FLOP), shown)

    rows = [row(s.name, [s], scaled(sum(costs[s.name].flops), FLOP)) for s in run.stages]
    rows.append(row("all", run.stages))
    left = [stage for stage in run.stages if not stage.finished]
    if len(left) < len(run.stages):
        rows.append(row("to do", left))
    if where.peak:
        note = (
            f"hours on {where.count} {where.name} at {where.utilisation:.0%} of {where.peak:g} "
            "TFLOP/s each"
        )
        if where.name in DEVICES:
            note += ", which is for bfloat16: on GPUs float32 takes at least twice as long"
    else:
        note = (
            f"hours are not known, nor is the peak of {where.name!r}; name other devices, such as "
            "--plan_for=8xh100, or the TFLOP/s of each: --plan_for=8x2250"
        )
    titles = ("stage", "images", "per iteration", "together", "hours")
    return logging.table(titles, rows) + "\n\n" + note


def programs(costs: Mapping[str, Cost]) -> list[tuple[str, str, Cost]]:
    """Returns (names of stages, name of the first, shared cost) for each set of programs."""
    groups: dict[int, list[str]] = {}
    for name, cost in costs.items():
        groups.setdefault(id(cost), []).append(name)
    return [(span(names), names[0], costs[names[0]]) for names in groups.values()]


def scaled(value: int | float, units: Sequence[str]) -> str:
    """Returns a value with four digits and a suitable unit: 210.7 GFLOP, 1.5 GiB."""
    base = 1024 if units is BYTES else 1000
    power = min(int(math.log(max(value, 1), base)), len(units) - 1)
    return f"{value / base**power:.4g} {units[power]}"
