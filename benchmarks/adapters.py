"""Compiles the student's update of SwD with adapters of a published transformer, for a CPU.

    python benchmarks/adapters.py                      # configs/sd35m_swd.py, blocks in a scan
    python benchmarks/adapters.py --unrolled           # the same blocks one after another

No weights are needed: everything is compiled for shapes, one image a device. It prints the bytes of
the program's arguments over those of one copy of the frozen weights, the adapters of student and
fake, and the moments and EMA of the student's; and the CPU-seconds of tracing and compiling.
"""

import pathlib
import tempfile
import time

import jax
from absl import app, flags
from etils import epath
from flax import linen as nn

from distill_jax.run import compilation, costs, plan
from distill_jax.runtime.config_file import load_file

FILE = flags.DEFINE_string("file", "configs/sd35m_swd.py", "Config with a size `plan`.")
UNROLLED = flags.DEFINE_bool("unrolled", False, "Whether to compile every block by itself.")


def compiled(file, workdir):
    """Returns the stage `swd`, its planned cost, its program and the CPU-seconds it took."""
    config = load_file(pathlib.Path(file)).get_config("plan")
    config.batch_size = 1
    run = plan.make(config, workdir)
    stage = run.stages[-1]
    began = time.process_time()
    program = compilation.compile_update(run, stage, 1, stage.method.phases[1].variants - 1)
    return stage, costs.cost_with(run, stage, 0), program, time.process_time() - began


def main(_):
    jax.config.update("jax_enable_compilation_cache", False)
    if UNROLLED.value:
        scan = nn.scan
        nn.scan = lambda *args, **options: scan(*args, unroll=options["length"], **options)
    with tempfile.TemporaryDirectory() as folder:
        stage, cost, program, seconds = compiled(FILE.value, epath.Path(folder))
    frozen = sum(2 * leaf.size for leaf in jax.tree.leaves(stage.shapes["teacher"]))
    trained = sum(cost.kept[kind] for kind in ("parameters", "optimizer", "EMA"))
    held = program.memory_analysis().argument_size_in_bytes
    print(f"at rest {held / 1e9:.3f} GB, {held / (frozen + trained):.4f} of the least")
    print(f"{seconds:.1f} CPU-seconds to trace and compile")


if __name__ == "__main__":
    app.run(main)
