"""Measures the memory that the import of a large network takes, and that of a tiny one.

    python benchmarks/import_memory.py                 # an mlp of 1 GB in float32
    python benchmarks/import_memory.py --blocks=3 --dtype=bfloat16
    python benchmarks/import_memory.py --pipeline=/tmp/sd15   # of benchmarks/stable_diffusion.py

Each is imported by the command, and RssAnon of /proc/PID/status read every few milliseconds: memory
that is the process's own. Pages of the mapped file are not counted, which the kernel takes back.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_jax.diffusion.spec import image_data
from distill_jax.models.build import abstract_params, make_network
from distill_jax.models.diffusers_files import WEIGHTS
from distill_jax.models.pretrained import find_weights
from distill_jax.storage import safetensors
from distill_jax.storage.weights import Stored
from distill_jax.teachers import native
from distill_jax.teachers.diffusers import network_folder

CONFIG = """
from distill_jax.config import base

def get_config():
    config = base()
    config.data.update(name="noise", size=8, channels=1, num_classes=3, count=16)
    config.model.update(name="mlp", width={width}, blocks={blocks})
    return config
"""
MB = 10**6


def drawn(shape, dtype):
    """Returns a leaf of random numbers, which are drawn when it is written."""
    rng = np.random.default_rng(0)
    dtype = np.dtype(jnp.dtype(dtype))
    return Stored(shape, dtype, lambda _: rng.standard_normal(shape, np.float32).astype(dtype))


def prepare(folder, width, blocks, dtype):
    """Writes a file and the config that describes it; returns the bytes of its largest leaf."""
    folder.mkdir()
    (folder / "config.py").write_text(CONFIG.format(width=width, blocks=blocks))
    described = {
        "model": {"name": "mlp", "width": width, "blocks": blocks},
        "schedule": {"name": "cosine"},
        "parameterization": "v",
    }
    network_spec = make_network(described, image_data((8, 8, 1), 3))
    leaves = native.leaves(abstract_params(network_spec, ()))
    state = {leaf.name: drawn(leaf.shape, dtype) for _, leaf in leaves}
    safetensors.write(folder / "model.safetensors", state)
    return max(leaf.nbytes for leaf in state.values())


def imported(kind, source, out, *flags):
    """Returns the largest RssAnon in bytes of the command of an import, and its seconds."""
    given = (kind, str(source), f"--out={out}", *flags)
    began, most = time.monotonic(), 0
    command = [sys.executable, "-m", "distill_jax.teachers", *given]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        sizes = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
        most = max([most, *(1024 * int(size) for size in sizes)])
        time.sleep(0.003)
    if process.returncode:
        raise SystemExit(f"the import of {source} failed")
    return most, time.monotonic() - began


def imported_mlp(folder):
    """Returns what `imported` does for a file that `prepare` wrote."""
    flags = folder / "out", f"--config={folder / 'config.py'}"
    return imported("safetensors", folder / "model.safetensors", *flags)


def measure(folder, width, blocks, dtype):
    """Returns the row of a large mlp: its size, its largest leaf, and the import's memory."""
    leaf = prepare(folder / "large", width, blocks, dtype)
    size = (folder / "large" / "model.safetensors").stat().st_size
    return row(folder, size, leaf, imported_mlp(folder / "large"))


def measure_pipeline(folder, pipeline):
    """Returns the row of a pipeline of diffusers, of which the network is imported."""
    file = find_weights(network_folder(pipeline), WEIGHTS)
    leaves = safetensors.read(file).values()
    found = imported("diffusers", pipeline, folder / "out")
    return row(folder, sum(leaf.nbytes for leaf in leaves), max(x.nbytes for x in leaves), found)


def row(folder, size, leaf, found):
    """Returns the row of a network, beside the import of a tiny mlp."""
    prepare(folder / "tiny", 8, 1, "float32")
    base, _ = imported_mlp(folder / "tiny")
    most, seconds = found
    return {
        "file": size,
        "largest leaf": leaf,
        "tiny file": base,
        "large file": most,
        "beyond tiny and leaf": most - base - leaf,
        "seconds": seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--pipeline", type=epath.Path, help="a pipeline in place of an mlp")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, said = pathlib.Path(name), str(flags.pipeline)
        if flags.pipeline:
            found = measure_pipeline(folder, flags.pipeline)
        else:
            found = measure(folder, flags.width, flags.blocks, flags.dtype)
            said = f"mlp of width {flags.width}, {flags.blocks} blocks, {flags.dtype}"
    print(f"{said}; MB of 10^6 bytes")
    for name, value in found.items():
        print(f"{name:22} {value:8.0f} s" if name == "seconds" else f"{name:22} {value / MB:8.0f}")


if __name__ == "__main__":
    main()
