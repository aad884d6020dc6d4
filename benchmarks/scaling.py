"""Tabulates what n devices keep, send and compute in one update, from compiled programs.

    python benchmarks/scaling.py                                    # imagenet64, 1 to 8 CPU devices
    python benchmarks/scaling.py --config=configs/digits_guided.py  # seconds
    pip install libtpu                                              # jax[tpu] names its version
    python benchmarks/scaling.py --topology=v5e:2x4 --config.batch_size=64    # no TPU is needed

Nothing is allocated or run. Each row is compiled in a separate process, for simulated CPU devices
or for an absent TPU slice. Bytes sent are those of the ring algorithm, and are compared with the
fewest possible, in float32. Over `data` these are an all-reduce of the gradients. Over `fsdp` they
are one all-gather of the parameters for every call of student and teacher, one more if the student
computes its activations again, and a reduce-scatter of the gradients.

"as compiled" counts the bytes in the program. "as needed", which has the target, counts elements,
so that bfloat16 does not hide a second exchange. It counts the all-reduce of a sharded parameter's
gradient as a reduce-scatter: XLA for GPUs and TPUs replaces it by one, but XLA for CPUs has no such
pass and sends twice as much. The exit code is 1 if a target is missed.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections import Counter

from absl import app, flags
from ml_collections import config_flags

ROOT = pathlib.Path(__file__).parent.parent
DEFAULT = str(ROOT / "configs" / "imagenet64_guided.py") + ":deterministic"
_CONFIG = config_flags.DEFINE_config_file(
    "config", DEFAULT, "Config file, FILE.py or FILE.py:size."
)
_DEVICES = flags.DEFINE_list("devices", ["1", "2", "4", "8"], "Numbers of devices.")
_STAGES = flags.DEFINE_list("stages", ["1", "2"], "From 0; 1 is guided, 2 a halving.")
_AXES = flags.DEFINE_list("axes", ["data", "fsdp"], "Axes that all devices are put along.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "A slice of TPUs, such as v5e:2x4.")
_ONE = flags.DEFINE_string("one", None, "Print only one row, such as fsdp:8:1, as JSON.")
KEPT, SENT = 1.05, 1.1  # Targets: kept bytes over total / n, and sent elements over the fewest.
# Effort of the TPU compiler: minutes instead of hours. At 0, the default, gathers may use bfloat16.
QUICK = {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1", "JAX_MEMORY_FITTING_EFFORT": "-1"}
CHEAP = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def layout_of(axis, count):
    """Returns the layout with all devices along one axis."""
    import jax

    from distill_jax.runtime.sharding import make_layout

    devices = jax.devices()[:count]
    if _TOPOLOGY.value:
        from jax.experimental import topologies

        devices = list(topologies.get_topology_desc(_TOPOLOGY.value, "tpu").devices)[:count]
    if len(devices) != count:
        raise ValueError(f"{_TOPOLOGY.value} has {len(devices)} devices, and {count} are asked for")
    return make_layout({axis: count}, devices)


def one(axis, count, index):
    """Returns a row: what one device keeps, sends and computes in the update of a stage."""
    import jax
    from collectives import RING, collectives

    from distill_jax.run import compilation, costs, plan

    config = _CONFIG.value
    config.mesh = {"data": 1, "fsdp": 1, "tensor": 1, axis: count}
    run = plan.make(config, "/tmp/never_made", count)
    run = dataclasses.replace(run, layout=layout_of(axis, count))
    stage = run.stages[index]
    roles = dataclasses.replace(stage.roles, layout=run.layout)
    stage = dataclasses.replace(stage, roles=roles)
    began = time.monotonic()
    cost = costs.measure(dataclasses.replace(run, stages=(stage,)))[stage.name]
    planned = time.monotonic()
    compiled = compilation.compile_update(run, stage, 0)
    seconds = planned - began, time.monotonic() - planned
    memory = compiled.memory_analysis()
    sent, needed = Counter(), 0
    gradients = Counter(sizes(run.layout, stage, "student", split=True))
    for each in collectives(compiled.as_text()):
        sent[each.kind] += each.sent
        whole = each.times * each.elements  # All layers, for a loop over layers.
        scattered = each.kind == "all-reduce" and gradients[whole] > 0
        gradients[whole] -= scattered
        kind = "reduce-scatter" if scattered else each.kind
        needed += 4 * each.times * RING[kind](each.elements, each.devices)
    return {
        "stage": stage.name,
        "kept": cost.kept,
        "step": cost.step,
        "seconds": seconds,
        "whole": sum(leaf.size * 4 for leaf in jax.tree.leaves(stage.shapes["student"])),
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "flops": compiled.cost_analysis().get("flops", 0),
        "sent": sent,
        "needed": needed,
        "fewest": fewest(run, stage, count),
    }


def sizes(layout, stage, role, split):
    """Returns the sizes of a role's parameters that are sharded over fsdp, or that are not."""
    import jax

    shapes = jax.tree.leaves(stage.shapes.get(role, ()))
    shardings = jax.tree.leaves(layout.shardings(stage.shapes.get(role, ())))
    pairs = zip(shapes, shardings, strict=True)
    return [leaf.size for leaf, sharding in pairs if ("fsdp" in sharding.spec) == split]


def calls(run, stage):
    """Returns how often an update of the first phase calls student and teacher."""
    from distill_jax.run import costs

    found = Counter()

    def counted(role, network_spec):
        def apply(*arguments):
            found[role] += 1
            return network_spec.network.apply(*arguments)

        network = network_spec.network._replace(apply=apply)
        return dataclasses.replace(network_spec, network=network)

    networks = {"student": stage.roles.student, "teacher": stage.roles.teacher}
    networks = {role: counted(role, each) for role, each in networks.items() if each is not None}
    roles = dataclasses.replace(stage.roles, layout=None, **networks)
    method, _, state, frozen, batch = costs.arguments(run, stage)
    costs.gradients(roles, method, {**frozen, **state.params}, batch, method.phases[0])
    return found


def fewest(run, stage, count):
    """Returns the fewest bytes that a device must send, in float32; see the top of the file."""
    called, model = calls(run, stage), run.config.model
    passes = 1 if model.get("remat", "none") == "none" else 2
    cases = (
        ("student", False, 2),
        ("student", True, 1 + passes * called["student"]),
        ("teacher", True, called["teacher"]),
    )
    total = sum(n * sum(sizes(run.layout, stage, role, split)) for role, split, n in cases)
    return 4 * total * (count - 1) / count


def start(axis, count, index):
    """Returns the row from a new process with `count` devices."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TPU_SKIP_MDS_QUERY": "1",  # There is no TPU to query,
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # and none that processes would compete for.
    }
    if _TOPOLOGY.value:
        environment = {**QUICK, **environment}
    else:
        environment["JAX_NUM_CPU_DEVICES"] = str(count)
        environment["XLA_FLAGS"] = CHEAP
    command = [sys.executable, *sys.argv, f"--one={axis}:{count}:{index}"]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def row(axis, count, index, single):
    """Returns a line of the table, and the targets that it misses."""
    got = start(axis, count, index)
    if count == 1:
        single[index] = got["flops"]
    state = sum(got["kept"][name] for name in ("parameters", "optimizer", "EMA"))
    part = state / (4 * got["whole"] / count)
    sent, rounds = sum(got["sent"].values()), got["fewest"] or 1
    kinds = ", ".join(f"{kind} {n / 1e6:,.0f}" for kind, n in got["sent"].items() if n > 5e5)
    cells = (
        got["stage"],
        f"{axis} {count}",
        *(f"{got['kept'][name] / 2**20:,.0f}" for name in ("parameters", "optimizer", "EMA")),
        f"{got['kept']['frozen'] / 2**20:,.0f}",
        f"{got['temporary'] / 2**20:,.0f}",
        f"{sum(got['step'].values()) / 2**20:,.0f}",
        f"{got['seconds'][0]:.0f}, {got['seconds'][1]:.0f}",
        f"{part:.3f}" if axis == "fsdp" else "-",
        kinds or "-",
        f"{got['fewest'] / 1e6:,.0f}",
        f"{sent / rounds:.3f}" if count > 1 else "-",
        f"{got['needed'] / rounds:.3f}" if count > 1 else "-",
        f"{got['flops'] * count / single[index]:.3f}" if index in single else "-",
    )
    missed = []
    if axis == "fsdp" and part > KEPT:
        missed.append(f"{got['stage']}, fsdp {count}: keeps {part:.3f} of total / {count}")
    if count > 1 and got["needed"] / rounds > SENT:
        missed.append(f"{got['stage']}, {axis} {count}: sends {got['needed'] / rounds:.3f}")
    return "| " + " | ".join(cells) + " |", missed


def main(argv):
    if _ONE.value:
        axis, count, index = _ONE.value.split(":")
        print(json.dumps(one(axis, int(count), int(index))))
        return
    titles = (
        "update of",
        "mesh",
        "parameters MiB",
        "optimizer MiB",
        "EMA MiB",
        "teacher MiB",
        "temporary MiB",
        "as planned",
        "s to plan, to compile",
        "state / (total / n)",
        "sent MB",
        "fewest MB",
        "as compiled",
        "as needed",
        "FLOP / (total / n)",
    )
    print("| " + " | ".join(titles) + " |\n|" + " - |" * len(titles), flush=True)
    missed, single = [], {}
    for index in map(int, _STAGES.value):
        for axis in _AXES.value:
            for count in map(int, _DEVICES.value):
                if axis == _AXES.value[0] or count > 1:
                    line, more = row(axis, count, index, single)
                    missed += more
                    print(line, flush=True)
    print("\n" + ("missed: " + "; ".join(missed) if missed else "all targets are met"))
    sys.exit(bool(missed))


if __name__ == "__main__":
    app.run(main)
