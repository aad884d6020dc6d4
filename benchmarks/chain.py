"""Measures speed and memory of the digits chain, as ratios to the least possible.

python benchmarks/chain.py --workdir=/tmp/digits            # trains the chain there first, timed
python benchmarks/chain.py --workdir=runs/digits_guided     # measures on a finished one
"""

import argparse
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp

import distill_jax
from distill_jax.run import plan
from distill_jax.training.update import Rates, make_update, new_state, optimizer
from distill_jax.typing import Batch

ROOT = pathlib.Path(__file__).parent.parent
BATCH = 1000  # Images per sampling call: larger batches exceed a CPU's caches.


def train_chain(workdir):
    """Runs the command and prints its wall clock, CPU time and peak memory."""
    config = ROOT / "configs" / "digits_guided.py"
    command = [
        sys.executable,
        "-m",
        "distill_jax.main",
        f"--config={config}",
        f"--workdir={workdir}",
    ]
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True)
    wall = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"command to report.md: {wall:.0f} s wall (at most 300, aim 180), "
        f"{used.ru_utime + used.ru_stime:.0f} CPU-seconds, "
        f"peak {used.ru_maxrss / 1024:.0f} MiB resident"
    )


def flops(compiled):
    return compiled.cost_analysis()["flops"]


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def compiled_update(run, stage, students):
    """Returns the update of a stage, compiled for abstract arguments."""
    config, method = run.config, stage.method
    tx = optimizer(**config.optimizer)
    params = abstract(students[stage.name].params)
    state = jax.eval_shape(lambda p: new_state(jax.random.key(0), {"student": p}, tx), params)
    frozen = {"teacher": abstract(students[stage.teacher.name].params)} if stage.teacher else {}
    size = config.batch_size
    label = jax.ShapeDtypeStruct((size,), jnp.int32)
    x = jax.ShapeDtypeStruct((size, *run.dataset.shape), jnp.float32)
    update = make_update(method.phases, 0, stage.roles, tx, run.layout)
    batch = Batch(jnp.arange(len(x)), x, {"label": label}, {"label": label[:1]})
    lowered = update.lower(method, Rates(1e-3, 0, 0.0, 100, 0.99), state, frozen, batch)
    return lowered.compile(), state


def forward_flops(run, student):
    """Returns the FLOPs of one call of a network on one training batch."""
    size = run.config.batch_size
    cond = {"label": jnp.zeros((size,), jnp.int32)}
    if student.takes_w:
        cond["w"] = jnp.zeros((size,))
    call = jax.jit(student.network_spec.network.apply)
    z, t = jnp.zeros((size, *student.shape)), jnp.zeros((size,))
    return flops(call.lower(student.params, z, t, cond).compile())


def measure_updates(run, students):
    for stage in run.stages[1:3]:
        update, state = compiled_update(run, stage, students)
        teacher, student = students[stage.teacher.name], students[stage.name]
        least = 2 * forward_flops(run, teacher) + 3 * forward_flops(run, student)
        print(
            f"{stage.name}: FLOPs of an update over 2 teacher + 3 student calls: "
            f"{flops(update) / least:.3f} (at most 1.05), {flops(update) / 1e9:.2f} GFLOP"
        )
        memory = update.memory_analysis()
        own = sum(
            leaf.size * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(state)
            if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        )
        print(
            f"{stage.name}: aliased {memory.alias_size_in_bytes / own:.3f} of the state's "
            f"{own / 2**20:.1f} MiB (1 when donated); temporaries "
            f"{memory.temp_size_in_bytes / 2**20:.1f} MiB"
        )


def seconds(call, repeat=9):
    """Returns the median wall-clock seconds after a first call that compiles."""
    call()
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def measure_sampling(students):
    teacher, guided = students["s00_teacher"], students["s01_guided"]
    one = students["s07_n0001"]
    key = jax.random.key(0)
    z = jax.random.normal(key, (BATCH, *guided.shape))
    cond = {"label": jnp.arange(BATCH) % 10, "w": jnp.ones((BATCH,))}
    apply, t = jax.jit(guided.network_spec.network.apply), jnp.ones((BATCH,))

    def calls():
        for _ in range(64):
            output = apply(guided.params, z, t, cond)
        output.block_until_ready()

    def sampler():
        guided.sample(key, BATCH, w=1.0, num_steps=64).block_until_ready()

    ratios = [seconds(sampler, 3) / seconds(calls, 3) for _ in range(3)]
    print(
        f"64-step sampling over 64 single network calls: {statistics.median(ratios):.3f} "
        "(at most 1.10)"
    )
    ratios = []
    for _ in range(3):
        slow = seconds(lambda: teacher.sample(key, BATCH, w=1.0).block_until_ready(), 3)
        fast = seconds(lambda: one.sample(key, BATCH, w=1.0).block_until_ready(), 15)
        ratios.append(slow / fast)
    print(
        f"guided 64-step teacher over 1-step student: {statistics.median(ratios):.0f} times, "
        f"{statistics.median(ratios) / 128:.2f} of the 128 times fewer calls (at least 0.7)"
    )


def measure_import():
    command = [sys.executable, "-c", "import distill_jax"]
    took = seconds(lambda: subprocess.run(command, check=True, cwd=ROOT), 3)
    print(f"import distill_jax: {took:.2f} s (under 2), interpreter start included")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", default="/tmp/digits_guided", help="of the chain")
    workdir = pathlib.Path(parser.parse_args().workdir).absolute()
    print(
        f"{os.cpu_count()} cores, {jax.devices()[0].device_kind}, JAX {jax.__version__}", flush=True
    )
    if not (workdir / "report.json").exists():
        train_chain(workdir)
    sys.path.insert(0, str(ROOT / "configs"))
    import digits_guided

    run = plan.make(digits_guided.get_config(), workdir)
    students = {stage.name: distill_jax.load(stage.directory) for stage in run.stages}
    measure_updates(run, students)
    measure_sampling(students)
    measure_import()


if __name__ == "__main__":
    main()
