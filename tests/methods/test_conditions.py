"""Every method runs on any kind of condition: text states and a mask, and a masked image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.denoiser import Network, NetworkSpec, guided
from distill_jax.diffusion.inpainting import with_inpainting
from distill_jax.diffusion.prediction import PARAMETERIZATIONS
from distill_jax.diffusion.spec import INPAINT, DataSpec, Leaf, Spec
from distill_jax.methods import METHODS
from distill_jax.methods.base import drop_labels
from distill_jax.models.build import initial_params
from distill_jax.training.roles import Roles
from distill_jax.typing import Batch
from tests.methods.iteration import METHOD, TEACHER
from tests.toys import filled, inputs_of

LENGTH, WIDTH, SIZE = 5, 7, 8
TEXT = ("text", Leaf((LENGTH, WIDTH))), ("mask", Leaf((LENGTH,), "bool"))
DATA = with_inpainting(DataSpec(Leaf((4, 4, 1)), True, TEXT))


def init(key, z, t, cond):
    numbers = {name: jnp.zeros(()) for name in ("w", "target") if name in cond}
    return {"text": jnp.zeros((WIDTH,)), "image": jnp.zeros((4, 4, 1)), **numbers}


def apply(params, z, t, cond, key=None):
    """Returns a weighted mean of the unmasked words, plus a term of the numbers and the image."""
    words = jnp.where(cond["mask"], cond["text"] @ params["text"], 0.0)
    shift = words.sum(axis=1) / cond["mask"].sum(axis=1)
    shift += sum(params[name] * cond[name] for name in ("w", "target") if name in params)
    return z * params["image"] + shift[:, None, None, None] + cond[INPAINT].sum(-1, keepdims=True)


def features(params, z, t, cond):
    middle = apply(params, z, t, cond).reshape(len(z), -1, 1)
    return jnp.tile(middle, (1, 1, 8))


SPEC = NetworkSpec(Network(init, apply, features), PARAMETERIZATIONS["v"], Spec(DATA, 1))


def batch_of(method, seed=0):
    rng = np.random.default_rng(seed)
    cond = {
        "text": jnp.asarray(rng.normal(size=(SIZE, LENGTH, WIDTH)), jnp.float32),
        "mask": jnp.asarray(np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (SIZE, 1))),
        INPAINT: jnp.asarray(rng.uniform(-1, 1, (SIZE, 4, 4, 2)), jnp.float32),
    }
    null = {"text": jnp.ones((1, LENGTH, WIDTH)), "mask": jnp.arange(LENGTH)[None] < 2}
    x = None if method.data_free else jnp.asarray(rng.uniform(-1, 1, (SIZE, 4, 4, 1)), jnp.float32)
    return Batch(jnp.arange(SIZE), x, cond, null)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_on_text_states_with_a_mask(name):
    method, teacher, batch = METHOD[name], TEACHER.get(name), batch_of(METHOD[name])
    fake = any(phase.trains == "fake" for phase in method.phases)
    discriminator = "pooled" if method.has_discriminator else ""
    sampler = teacher.sampler(SPEC.schedule) if method.draws else None
    roles = Roles(SPEC, teacher and SPEC, fake, discriminator, sampler=sampler)
    params = filled(roles.initial(jax.random.key(1), inputs_of(method), None))
    if teacher is not None:
        params["teacher"] = filled(initial_params(jax.random.key(2), SPEC, inputs_of(teacher)), 0.2)
    for phase in method.phases:

        @jax.jit
        def gradient(trained, batch, phase=phase):
            def loss(trained):
                nets = roles({**params, phase.trains: trained})
                return phase.loss(method, jax.random.key(3), batch, nets)[0]

            return jax.grad(loss)(trained)

        trained = params[phase.trains]
        found = gradient(trained, batch)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
        network = found["network"] if phase.trains == "fake" else found
        assert np.abs(network["text"]).max() > 0
        # A word behind the mask is never read.
        text = jnp.where(batch.cond["mask"][..., None], batch.cond["text"], 100.0)
        same = gradient(trained, batch._replace(cond={**batch.cond, "text": text}))
        for a, b in zip(*map(jax.tree.leaves, (found, same)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_dropping_replaces_the_text_of_an_example_by_the_null_and_keeps_its_image():
    batch = batch_of(METHOD["diffusion"])
    dropped = drop_labels(jax.random.key(0), batch, 0.5)
    is_null = (dropped["text"] == batch.null["text"]).all(axis=(1, 2))
    assert 0 < is_null.sum() < SIZE
    for i, null in enumerate(is_null):
        for name, value in batch.cond.items():
            expected = batch.null[name][0] if null and name != INPAINT else value[i]
            np.testing.assert_array_equal(dropped[name][i], expected)


def test_guidance_runs_between_the_text_and_the_one_null_of_all():
    batch, params = batch_of(METHOD["diffusion"]), {"text": jnp.ones(WIDTH), "image": jnp.ones(())}
    denoiser, t = SPEC(params), jnp.full((SIZE,), 0.5)
    null = {name: jnp.repeat(value, SIZE, axis=0) for name, value in batch.null.items()}
    x = guided(denoiser, 2.0, batch.null)(batch.x, t, batch.cond).x
    without = denoiser(batch.x, t, {**batch.cond, **null}).x
    expected = 3 * denoiser(batch.x, t, batch.cond).x - 2 * without
    np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-4)
