"""Costs of a plan, before the run: parameters, FLOPs, bytes per device, and hours.

FLOPs are counted in the gradient of the method's loss, traced on shapes. They include every network
call of the method and every recomputation of activations.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding

from distill_jax.diffusion.denoiser import NetworkSpec
from distill_jax.diffusion.spec import Leaf
from distill_jax.methods import Method, Phase
from distill_jax.models.build import abstract_params
from distill_jax.run import measurements
from distill_jax.run.devices import DEVICES, Target, hours
from distill_jax.run.flops import flops, flops_of
from distill_jax.run.memory import peak_bytes
from distill_jax.run.plan import Roles, Run, Stage
from distill_jax.runtime import logging
from distill_jax.runtime.sharding import Layout
from distill_jax.runtime.trees import STACK, by_module, by_name, is_stacked, layers_of, span
from distill_jax.training.update import make_update, new_state
from distill_jax.typing import Batch, Tree

FLOP = ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP")
BYTES = ("B", "KiB", "MiB", "GiB", "TiB")


class Cost(NamedTuple):
    """The cost of a stage. Stages that run the same programs share one object.

    Attributes:
      flops: FLOPs of one iteration's updates per phase, over all devices (mean over its programs).
      kept: bytes on each device between two updates, by kind.
      step: additional bytes on each device within an update, by kind; see `_step`.
    """

    flops: tuple[int, ...]
    kept: dict[str, int]
    step: dict[str, int]


def measure(run: Run) -> dict[str, Cost]:
    """Returns the cost of every stage by name; it takes seconds and allocates no array."""
    costs, alike = {}, {}
    for stage in run.stages:
        structure = jax.tree.structure((stage.method, stage.shapes))
        sizes = stage.batch_size, *jax.tree.leaves(stage.shapes)
        key = (stage.method.phases, stage.roles, structure, sizes)
        if key not in alike:
            alike[key] = _measure(run, stage)
        costs[stage.name] = alike[key]
    return costs


def _measure(run: Run, stage: Stage) -> Cost:
    """Returns the cost of one stage."""
    method, _, state, frozen, batch = arguments(run, stage)
    networks = stage.roles.student, stage.roles.teacher
    student, teacher = (each and _traced_once(each) for each in networks)
    roles = dataclasses.replace(stage.roles, student=student, teacher=teacher, layout=None)
    params = {**frozen, **state.params}
    larger = arguments(run, dataclasses.replace(stage, batch_size=2 * stage.batch_size))[-1]
    trace = functools.partial(gradients, roles, method, params)
    traces = [(phase, trace(batch, phase), trace(larger, phase)) for phase in method.phases]
    kept = {
        "parameters": state.params,
        "frozen": frozen,
        "optimizer": state.opt,
        "EMA": state.ema,
        "batch": batch._replace(index=None),  # No loss reads the index, so no program takes it.
    }
    if run.config.evaluate.keep_best:
        kept["best EMA"] = state.ema
    return Cost(
        tuple(
            phase.updates_per_iteration * sum(map(flops_of, once)) // phase.variants
            for phase, once, _ in traces
        ),
        {name: _bytes_per_device(tree) for name, tree in kept.items()},
        _step(run, stage, state.params, traces),
    )


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


def _step(
    run: Run, stage: Stage, trained: Mapping[str, Tree], traces: list[tuple[Phase, list, list]]
) -> dict[str, int]:
    """Returns the bytes on each device within an update, for the phase that needs most.

    "gradients" are the device's shards. "activations" is the growth of the trace's peak with the
    batch, for the device's examples of one microbatch. "gathered" are the weights of the largest
    layer or block that is split over fsdp, or all of them if layers do not gather their weights.
    """
    rows = stage.batch_size // run.layout.ways // run.config.microbatches

    def activations(once: list, twice: list) -> int:
        peaks = zip(map(peak_bytes, once), map(peak_bytes, twice), strict=True)
        return max((more - less) * rows // stage.batch_size for less, more in peaks)

    return {
        "gradients": max(_bytes_per_device(trained[phase.trains]) for phase, *_ in traces),
        "activations": max(activations(once, twice) for _, once, twice in traces),
        "gathered": _gathered(run.layout, stage),
    }


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
    state = jax.eval_shape(lambda params: new_state(jax.random.key(0), params, stage.tx), trained)
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
    for names, _, cost in _programs(costs):
        rest, step = sum(cost.kept.values()), sum(cost.step.values())
        amounts = (*cost.kept.values(), rest, *cost.step.values(), rest + step)
        kept.append((names, *(scaled(n, BYTES) for n in amounts)))
    return "\n\n".join(
        (
            logging.table(("module", "parameters", "share"), modules),
            f"{scaled(forward, FLOP)} per image and call of the network of {last.name} (matrix "
            "products and convolutions; a multiply-add is 2)",
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
        total = evaluate.few * sum(
            measurements.count(evaluate, stage)
            * measurements.calls(evaluate, stage)
            * forward_flops(stage.roles.student, stage.trained.inputs)
            for stage in found
        )
        training = sum(stage.spec.steps * sum(costs[stage.name].flops) for stage in run.stages)
        yield (
            f"measurements in training: {scaled(total, FLOP)} of network calls, "
            f"{total / training:.1%} of the training's; the evaluator comes on top"
        )


@functools.lru_cache(maxsize=16)
def forward_flops(network_spec: NetworkSpec, inputs: tuple[str, ...]) -> int:
    """Returns the FLOPs of one call of the network with these inputs, on one image."""
    params = abstract_params(network_spec, inputs)
    return flops(network_spec.network.apply, params, *network_spec.spec.example(inputs))


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


def _programs(costs: Mapping[str, Cost]) -> list[tuple[str, str, Cost]]:
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


def check_compile(run: Run) -> None:
    """Raises ValueError unless the run's programs can be compiled here."""
    if isinstance(run.layout.mesh, AbstractMesh):
        count = run.layout.mesh.size
        raise ValueError(
            f"--plan=compile is for the {jax.device_count()} device(s) here, and {count} are "
            "planned for: a program is compiled where it would run. Take --plan without it, or "
            f"let CPU devices stand in: JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES={count} in front"
        )


def show_compiled(run: Run, costs: Mapping[str, Cost]) -> str:
    """Compiles each update of a run once, and returns a table of XLA's memory per device.

    Of a phase with several programs it compiles the last one, which has the largest images. The
    table compares the counted FLOPs with XLA's count, which includes elementwise operations, counts
    the body of a loop once and, on GPUs, lacks library calls.
    """
    stages, rows, sizes = {stage.name: stage for stage in run.stages}, [], {}
    for names, first, cost in _programs(costs):
        for index, counted in enumerate(cost.flops):
            phase = stages[first].method.phases[index]
            logging.say(f"compiling the update of {names}")
            began = time.monotonic()
            compiled = compile_update(run, stages[first], index, phase.variants - 1)
            seconds, memory = time.monotonic() - began, compiled.memory_analysis()
            theirs = compiled.cost_analysis().get("flops", 0) * jax.device_count()
            sizes = {
                "arguments": memory.argument_size_in_bytes,
                "results": memory.output_size_in_bytes,
                "of these in place": memory.alias_size_in_bytes,
                "activations": memory.temp_size_in_bytes,
            }
            together = sum(sizes.values()) - 2 * sizes["of these in place"]
            amounts = [scaled(size, BYTES) for size in (*sizes.values(), together)]
            flop = (scaled(counted / phase.updates_per_iteration, FLOP), scaled(theirs, FLOP))
            rows.append((names, index, f"{seconds:.0f}", *flop, *amounts))
    titles = ("stage", "phase", "seconds to compile", "FLOP counted", "FLOP by XLA")
    return logging.table((*titles, *sizes, "together"), rows)


def compile_update(run: Run, stage: Stage, index: int, turn: int = 0) -> jax.stages.Compiled:
    """Returns the run's program for a phase, compiled for shapes."""
    phases, parts = stage.method.phases, run.config.microbatches
    update = make_update(phases, index, stage.roles, stage.tx, run.layout, turn, parts)
    return update.lower(*arguments(run, stage)).compile()
