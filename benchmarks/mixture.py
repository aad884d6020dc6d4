"""Compares SiD, DMD2, BOOT and MeanFlow on an exact teacher of a mixture, at several seeds.

python benchmarks/mixture.py                            # trains runs/mixture_METHOD_SEED first
python benchmarks/mixture.py --seeds=0 --root=/tmp/runs

Sliced Wasserstein-2 distances to fresh points of each class, 20,000 in all. The root mean square
error per coordinate, of BOOT and MeanFlow, is to the exact path, by Heun's method in 2,000 steps
from the same noise.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import seeds

from distill_jax import load
from distill_jax.diffusion.analytic import ode_map, ring
from distill_jax.diffusion.schedule import expand
from distill_jax.methods.matching import generate
from distill_jax.metrics.sliced import by_class
from distill_jax.runtime import logging

ROOT = pathlib.Path(__file__).parent.parent
NUM = 20_000
LABEL = np.arange(NUM) % 4
FRESH = ring().sample(np.random.default_rng(12345), LABEL)


def distances(x):
    """Returns the mean and the largest distance to fresh points over the classes."""
    values = list(by_class(np.asarray(x).reshape(NUM, 2), LABEL, FRESH, LABEL).values())
    return [f"{np.mean(values):.4f}", f"{np.max(values):.4f}"]


def untrained(student):
    """Returns images of one exact denoiser call at noise level 2.5, where SiD and DMD2 begin."""
    schedule = student.network_spec.schedule
    eps = jax.random.normal(jax.random.key(7), (NUM, 1, 1, 2))
    t = schedule.time(jnp.asarray(-2 * np.log(2.5)))
    return generate(ring().denoiser(schedule), eps, t, {"label": jnp.asarray(LABEL)})


def rmse(student):
    """Returns the RMSE per coordinate at the last time to the exact path from the same noise."""
    sampler, schedule = student.trained.sampler, student.network_spec.schedule
    first, last = getattr(sampler, "t_max", 1.0), getattr(sampler, "t_min", 0.0)
    eps = jax.random.normal(jax.random.key(8), (2000, 1, 1, 2))
    cond = {"label": jnp.asarray(LABEL[:2000])}
    start, end = jnp.full((2000,), first), jnp.full((2000,), last)
    z = expand(schedule.sigma(start), eps) * eps
    z = ode_map(ring().denoiser(schedule), z, cond, first, last, 2000)
    truth = (z - expand(schedule.sigma(end), z) * eps) / expand(schedule.alpha(end), z)
    y = sampler(jax.random.key(0), student.denoiser, eps, cond)
    return f"{float(jnp.sqrt(jnp.mean((y - truth) ** 2))):.4f}"


def run(name, seed, root):
    """Returns the row of one method and seed."""
    _, seconds = seeds.run(f"mixture_{name}", seed, root)
    student = load(root / f"mixture_{name}_{seed}")
    x = student.sample(jax.random.key(seed + 1), NUM, LABEL)
    return [
        name,
        seed,
        *distances(x),
        rmse(student) if name in ("boot", "meanflow") else "-",
        seconds,
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default=str(ROOT / "runs"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default="sid,dmd2,boot,meanflow")
    options = parser.parse_args()
    root, rows = pathlib.Path(options.root), []
    for name in options.methods.split(","):
        rows += [run(name, int(seed), root) for seed in options.seeds.split(",")]
    student = load(root / f"mixture_{rows[0][0]}_{rows[0][1]}")
    rows.append(
        ["untrained: exact, one call at 2.5", "-", *distances(untrained(student)), "-", "-"]
    )
    again = ring().sample(np.random.default_rng(54321), LABEL)
    rows.append(["floor: as many fresh points", "-", *distances(again), "-", "-"])
    titles = ("method", "seed", "SW2", "SW2, worst class", "RMSE to the exact path", "seconds")
    print(logging.table(titles, rows))


if __name__ == "__main__":
    main()
