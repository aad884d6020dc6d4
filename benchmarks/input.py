"""Measures input speed, as ratios to a plain gather from memory and to the time of an update.

python benchmarks/input.py --data_dir=DIR
python benchmarks/input.py --data_dir=DIR --step_seconds=0.25   # of another machine
"""

import argparse
import itertools
import os
import pathlib
import tempfile
import time

import jax
import numpy as np
from PIL import Image

from distill_jax.data import DATASETS
from distill_jax.data.images import CACHE_BYTES, THREADS
from distill_jax.diffusion.denoiser import NetworkSpec
from distill_jax.diffusion.pixels import normalise
from distill_jax.diffusion.prediction import PARAMETERIZATIONS
from distill_jax.diffusion.spec import image_spec
from distill_jax.methods import METHODS
from distill_jax.models import NETWORKS
from distill_jax.models.build import initial_params
from distill_jax.run.plan import Roles
from distill_jax.training.update import Rates, make_update, new_state, optimizer
from distill_jax.typing import Batch

FILES = 600  # Number of (256, 256) images in the folders.


def per_second(batches, count, size):
    """Returns images per second over `count` batches, without those prefetched before the first."""
    began = time.perf_counter()
    for _ in itertools.islice(batches, count):
        pass
    return count * size / (time.perf_counter() - began)


def gather(size):
    """Yields batches of random rows of an array like CIFAR-10, half mirrored, on one thread."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    while True:
        batch, mirrored = x[rng.integers(0, len(x), size)], rng.random(size) < 0.5
        batch[mirrored] = batch[mirrored, :, ::-1]
        yield batch


def write_files(root, suffix):
    """Writes smooth pictures with grain, as large as photographs; returns the mean file size."""
    rng = np.random.default_rng(0)
    for i in range(FILES):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        x = np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC), np.float32)
        x = np.clip(x + rng.normal(scale=6, size=x.shape), 0, 255).astype(np.uint8)
        path = root / str(i % 10) / f"{i}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(path)
    return sum(path.stat().st_size for path in root.glob("*/*")) / FILES


def cifar10(data_dir):
    """Returns CIFAR-10, not yet decoded; None if it is absent."""
    try:
        return DATASETS["tfds"]("cifar10", 32, data_dir)
    except ValueError as error:
        print(f"without cifar10: {error}\n")
        return None


def speeds(data, size):
    """Yields (name, images per second) of every input."""
    count = max(1, FILES * 9 // 10 // size)  # Batches before the second epoch.
    yield "numpy gather, 32x32", per_second(gather(size), 2000, size)
    if data is not None:
        batches = data.batches(0, 0, size)
        yield "cifar10, decoding", per_second(batches, 100, size)
        data.images("train")  # Reads all images into memory.
        yield "cifar10, from the cache", per_second(batches, 400, size)
    for suffix in (".png", ".jpg"):
        with tempfile.TemporaryDirectory() as root:
            bytes_each = write_files(pathlib.Path(root), suffix)
            data = DATASETS["folder"](root, 64)
            name = f"folder of 256x256 {suffix} ({bytes_each / 1024:.0f} KiB each) to 64x64"
            yield name, per_second(data.batches(0, 0, size), count, size)


class Step:
    """An update of a small transformer on 32x32 images in 10 classes."""

    def __init__(self, size):
        sizes = image_spec((32, 32, 3), 10, 1)
        network = NETWORKS["dit"](sizes, width=64, blocks=2, heads=2, patch=4)
        network_spec = NetworkSpec(network, PARAMETERIZATIONS["v"], sizes)
        self._method, tx = METHODS["diffusion"](), optimizer(0.9, 0.99, 0.0, 1.0)
        self._update = make_update(self._method.phases, 0, Roles(network_spec, None), tx)
        params = initial_params(jax.random.key(0), network_spec, ())
        self._state = new_state(jax.random.key(1), {"student": params}, tx)
        self._rates = Rates(1e-3, 0, 0.0, 1000, 0.995)
        self._null = {"label": np.full(size, 10, np.int32)}
        self._normalise = jax.jit(normalise)

    def seconds(self, batches, count):
        """Returns (seconds per update, seconds per update spent waiting for the batch)."""
        began, waited = time.perf_counter(), 0.0
        for _ in range(count):
            asked = time.perf_counter()
            x, label = next(batches)
            waited += time.perf_counter() - asked
            batch = Batch(np.arange(len(x)), self._normalise(x), {"label": label}, self._null)
            self._state, metrics = self._update(self._method, self._rates, self._state, {}, batch)
        metrics["loss"].block_until_ready()
        return (time.perf_counter() - began) / count, waited / count


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data_dir", default="", help="where TFDS prepared cifar10")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--step_seconds", type=float, default=0.0, help="0 measures an update")
    args = parser.parse_args()

    step = args.step_seconds or measure_step(cifar10(args.data_dir), args.batch)
    print(
        f"{os.cpu_count()} cores, {THREADS} threads, batches of {args.batch}, an update of "
        f"{step:.4f} s, {CACHE_BYTES / 2**30:g} GiB of cache\n"
    )
    print("| input | images/s | / gather | seconds of a batch / of an update |")
    print("| --- | ---: | ---: | ---: |")
    fastest = None
    for name, speed in speeds(cifar10(args.data_dir), args.batch):
        fastest = fastest or speed
        share = args.batch / speed / step
        print(f"| {name} | {speed:,.0f} | {speed / fastest:.3f} | {share:.3f} |", flush=True)


def measure_step(data, size):
    """Returns the seconds of an update with a ready batch; prints those with real input."""
    step = Step(size)
    batch = next(DATASETS["noise"](size=32).batches(0, 0, size))
    step.seconds(itertools.repeat(batch), 3)  # Compiles.
    alone, _ = step.seconds(itertools.repeat(batch), 40)
    if data is not None:
        took, waited = step.seconds(data.batches(0, 0, size), 40)
        print(
            f"training on cifar10 while it is decoded: {took / alone:.2f} of the time of an update "
            f"alone, {waited / took:.1%} of it waiting for batches\n"
        )
    return alone


if __name__ == "__main__":
    main()
