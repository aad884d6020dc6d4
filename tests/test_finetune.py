"""Tests of the recipe of docs/teachers.md: the null condition is learned, and nothing is lost."""

import jax.numpy as jnp
import numpy as np

from distill_jax.config import base, stage
from distill_jax.config import pipeline as stages
from distill_jax.diffusion.analytic import ring
from distill_jax.diffusion.schedule import Cosine, add_noise
from distill_jax.run import pipeline, plan
from distill_jax.sampling.loading import load

COUNT, UPDATES, RATE = 800, 400, 3e-3


def errors(student):
    """Returns mean |x_hat - E[x | z_t, c]|^2 for the labels, and for the null label."""
    rng, toy = np.random.default_rng(0), ring()
    mode = np.arange(COUNT) % len(toy.labels)
    x = np.asarray(toy.means)[mode] + toy.std * rng.normal(size=(COUNT, 2))
    x, eps = (
        jnp.asarray(a, jnp.float32).reshape(-1, 1, 1, 2) for a in (x, rng.normal(size=x.shape))
    )
    t = jnp.linspace(0.1, 0.9, COUNT)
    z = add_noise(Cosine(), x, eps, t)
    for label in (np.asarray(toy.labels)[mode], np.full(COUNT, toy.num_classes)):
        cond = {"label": jnp.asarray(label, jnp.int32)}
        exact = toy.denoiser(Cosine())(z, t, cond).x
        yield float(jnp.mean((student.denoise(z, t, cond).x - exact) ** 2))


def test_a_quarter_of_the_updates_with_label_dropout_teaches_the_null_label(tmp_path):
    config = base()
    config.data = {"name": "mixture", "count": 4000}
    config.model.update(name="mlp", width=32, blocks=1)
    config.evaluate.update(w=(0.0,), num_samples=8)
    config.update(batch_size=256, updates_per_call=20, log_every=400, save_every=400)
    config.stages = stages(
        stage("teacher", "diffusion", steps=UPDATES, learning_rate=RATE, label_dropout=0.0),
        stage(
            "tuned",
            "diffusion",
            teacher="teacher",
            steps=UPDATES // 4,
            learning_rate=RATE,
            label_dropout=0.2,
        ),
    )
    pipeline.run(plan.make(config, tmp_path), stop=lambda: False)
    teacher, tuned = load(tmp_path / "s00_teacher"), load(tmp_path / "s01_tuned")
    assert (teacher.can_be_guided, tuned.can_be_guided) == (False, True)
    (given, null), (given_tuned, null_tuned) = errors(teacher), errors(tuned)
    assert null_tuned < null / 4
    assert given_tuned < 2 * given
