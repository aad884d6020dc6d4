"""The memory of a run's updates as they are compiled for the devices here."""

import time
from collections.abc import Mapping

import jax
from jax.sharding import AbstractMesh

from distill_jax.run.costs import BYTES, FLOP, Cost, arguments, programs, scaled
from distill_jax.run.plan import Run
from distill_jax.run.stages import Stage
from distill_jax.runtime import logging
from distill_jax.training.update import make_update


def check(run: Run) -> None:
    """Raises ValueError unless the run's programs can be compiled here."""
    if isinstance(run.layout.mesh, AbstractMesh):
        count = run.layout.mesh.size
        raise ValueError(
            f"--plan=compile is for the {jax.device_count()} device(s) here, and {count} are "
            "planned for: a program is compiled where it would run. Take --plan without it, or "
            f"let CPU devices stand in: JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES={count} in front"
        )


def show(run: Run, costs: Mapping[str, Cost]) -> str:
    """Compiles each update of a run once, and returns a table of XLA's memory per device.

    Of a phase with several programs it compiles the last one, which has the largest images. The
    table compares the counted FLOPs with XLA's count, which includes elementwise operations, counts
    the body of a loop once and, on GPUs, lacks library calls.
    """
    stages, rows, sizes = {stage.name: stage for stage in run.stages}, [], {}
    for names, first, cost in programs(costs):
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
