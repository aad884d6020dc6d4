"""Measures the memory that the import of a large safetensors file takes, and that of a tiny one.

    python benchmarks/import_memory.py                 # an mlp of 1 GB in float32
    python benchmarks/import_memory.py --blocks=3 --dtype=bfloat16

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

from distill_jax.diffusion.spec import image_data
from distill_jax.models.build import abstract_params, make_network
from distill_jax.storage import safetensors
from distill_jax.storage.weights import Stored
from distill_jax.teachers import native

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


def imported(folder):
    """Returns the largest RssAnon in bytes of the command that imports a file, and its seconds."""
    flags = (f"--config={folder / 'config.py'}", f"--out={folder / 'out'}")
    source = str(folder / "model.safetensors")
    command = [sys.executable, "-m", "distill_jax.teachers", "safetensors", source, *flags]
    began, most = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        sizes = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
        most = max([most, *(1024 * int(size) for size in sizes)])
        time.sleep(0.003)
    if process.returncode:
        raise SystemExit(f"the import of {folder} failed")
    return most, time.monotonic() - began


def measure(folder, width, blocks, dtype):
    """Returns the row of a large file: its size, its largest leaf, and the import's memory."""
    prepare(folder / "tiny", 8, 1, dtype)
    leaf = prepare(folder / "large", width, blocks, dtype)
    size = (folder / "large" / "model.safetensors").stat().st_size
    base, _ = imported(folder / "tiny")
    most, seconds = imported(folder / "large")
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
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = measure(pathlib.Path(folder), flags.width, flags.blocks, flags.dtype)
    print(f"mlp of width {flags.width}, {flags.blocks} blocks, {flags.dtype}; MB of 10^6 bytes")
    for name, value in row.items():
        print(f"{name:22} {value:8.0f} s" if name == "seconds" else f"{name:22} {value / MB:8.0f}")


if __name__ == "__main__":
    main()
