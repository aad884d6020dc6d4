import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.noise_levels import level_of, time_of
from distill_jax.diffusion.prediction import Prediction, eps_from_x
from distill_jax.diffusion.schedule import Cosine
from distill_jax.methods import METHODS, Nets
from distill_jax.methods.matching import discriminator_loss, generator_gan_loss, normalised
from tests.test_configs import load_config
from tests.toys import check, gaussian_denoiser, make_batch, sample

Dmd2, Diffusion = METHODS["dmd2"], METHODS["diffusion"]
NUM = 64
BATCH = make_batch(None, {"label": jnp.arange(NUM) % 2}, {"label": jnp.full((NUM,), 2)})
KEY = jax.random.key(0)
REAL, FAKE = (0.7, 0.0), (0.5, 0.1)


def bent(weights, seen=None, discriminator=None):
    """A denoiser of two weights whose Jacobian depends on z, and which records its inputs."""

    def predict(z, t, cond, key=None):
        if seen is not None:
            seen.append((z, t, dict(cond)))
        x = jnp.tanh(weights[0] * z + weights[1])
        return Prediction(x, eps_from_x(z, x, Cosine(), t))

    return Denoiser(Cosine(), predict, (3,), discriminator=discriminator)


def test_dropout_is_on_in_no_network():
    keys = []

    def predict(z, t, cond, key=None):
        keys.append(key)
        return Prediction(0.5 * z, 0.5 * z)

    network = Denoiser(Cosine(), predict, (3,), discriminator=logit)
    nets, data = Nets(network, network, network), BATCH._replace(x=jnp.ones((NUM, 3)))
    method = Dmd2(gan_weight=0.5)
    method.fake_loss(KEY, data, nets)
    method.student_loss(KEY, data, nets)
    assert keys == [None] * 5


def shifted(shift, seen=None):
    """A generator whose single parameter moves all of its images."""

    def predict(z, t, cond, key=None):
        if seen is not None:
            seen.append((z, t, dict(cond)))
        return Prediction(shift + 0.2 * z, z)

    return Denoiser(Cosine(), predict, (3,))


def test_the_gradient_is_the_normalised_gap_and_has_no_path_through_the_networks(x64):
    def loss(shift, real, fake, made=None, seen=None):
        nets = Nets(shifted(shift, made), bent(real, seen), bent(fake))
        return Dmd2().student_loss(KEY, BATCH, nets)

    made, seen = [], []
    loss(0.3, REAL, FAKE, made, seen)
    x, z, t = 0.3 + 0.2 * made[0][0], *seen[0][:2]
    real, fake = bent(REAL)(z, t, {}).x, bent(FAKE)(z, t, {}).x
    (of_shift, of_real, of_fake), metrics = jax.grad(loss, (0, 1, 2), has_aux=True)(0.3, REAL, FAKE)
    np.testing.assert_allclose(of_shift, normalised(fake - real, x - real).mean(), rtol=1e-9)
    assert (*of_real, *of_fake) == (0, 0, 0, 0)
    gap = np.abs(normalised(fake - real, x - real)).mean()
    np.testing.assert_allclose(metrics["score_gap"], gap)
    resting, metrics = jax.grad(loss, has_aux=True)(0.3, REAL, REAL)
    assert resting == metrics["score_gap"] == 0


def test_the_teacher_is_guided_and_the_fake_is_not():
    real, fake = [], []
    nets = Nets(shifted(0.3), bent(REAL, real), bent(FAKE, fake))
    for w in (0.0, 1.0):
        method = Dmd2(w=w)
        assert (method.fixed_w, method.guides) == (w, w > 0)
        method.student_loss(KEY, BATCH, nets)
        method.fake_loss(KEY, BATCH, nets)
    assert [len(z) // NUM for z, *_ in real] == [1, 2]
    assert [len(z) // NUM for z, *_ in fake] == [1, 1, 1, 1]
    assert 2 in real[1][2]["label"]


def logit(z, t, cond):
    return z.mean(1) - 0.1 * cond["label"]


def test_the_discriminator_sees_noisy_data_and_noisy_samples_of_the_same_labels():
    seen = []

    def discriminator(z, t, cond):
        seen.append((z, t, cond["label"]))
        return logit(z, t, cond)

    method = Dmd2(gan_weight=0.5, discriminator_weight=2.0)
    data = BATCH._replace(x=jnp.full((NUM, 3), 9.0))
    assert method.has_discriminator
    assert not method.data_free
    nets = Nets(shifted(0.3), bent(REAL), bent(FAKE, discriminator=discriminator))
    loss, metrics = method.fake_loss(KEY, data, nets)
    (real, t_real, label), (fake, t_fake, fake_label) = seen
    np.testing.assert_array_equal(label, fake_label)
    assert not np.allclose(t_real, t_fake)
    calm = t_real < 0.05
    np.testing.assert_allclose(real[calm], 9.0, atol=0.5)
    of_real, of_fake = (logit(z, 0, {"label": label}) for z in (real, fake))
    expected = discriminator_loss(of_real, of_fake)
    np.testing.assert_allclose(metrics["discriminator_loss"], expected, rtol=1e-6)
    alone, _ = dataclasses.replace(method, discriminator_weight=0.0).fake_loss(KEY, data, nets)
    np.testing.assert_allclose(loss, alone + 2 * expected, rtol=1e-6)

    seen.clear()
    loss, metrics = method.student_loss(KEY, data, nets)
    ((fake, _, label),) = seen
    expected = generator_gan_loss(logit(fake, 0, {"label": label}))
    np.testing.assert_allclose(metrics["generator_gan_loss"], expected, rtol=1e-6)
    alone, _ = Dmd2().student_loss(KEY, BATCH, nets)
    np.testing.assert_allclose(loss, alone + 0.5 * metrics["generator_gan_loss"], rtol=1e-6)


def test_one_step_starts_at_sigma_init_and_several_at_their_times():
    made = []
    nets = Nets(shifted(0.3, made), bent(REAL), bent(FAKE))
    assert Dmd2().num_steps == 1
    Dmd2(sigma_init=2.5).fake_loss(KEY, BATCH, nets)
    ((z, t, _),) = made
    np.testing.assert_allclose(level_of(Cosine(), t), 2.5, rtol=1e-5)
    np.testing.assert_allclose(z.std(), Cosine().sigma(t[0]), rtol=0.2)


TIMES = (0.9, 0.6, 0.3)


def test_training_meets_every_step_on_the_students_own_path():
    called = []

    def predict(z, t, cond, key=None):
        jax.debug.callback(lambda t, z: called.append((float(t), np.asarray(z))), t[0], z)
        return Prediction(0.25 + 0 * z, z)

    method, student = Dmd2(times=TIMES), Denoiser(Cosine(), predict, (3,))
    assert method.num_steps == 3
    loss = jax.jit(lambda key: method.fake_loss(key, BATCH, Nets(student, None, bent(FAKE)))[0])
    met = set()
    for seed in range(12):
        called.clear()
        loss(jax.random.key(seed)).block_until_ready()
        jax.effects_barrier()
        called.sort(key=lambda call: -call[0])
        np.testing.assert_allclose([t for t, _ in called], TIMES[: len(called)], rtol=1e-6)
        met.add(len(called))
        for t, z in called[1:]:
            alpha, sigma = Cosine().alpha(jnp.asarray(t)), Cosine().sigma(jnp.asarray(t))
            np.testing.assert_allclose(z.mean(), 0.25 * alpha, atol=4 * sigma / np.sqrt(z.size))
            np.testing.assert_allclose(z.std(), sigma, rtol=0.25)
    assert met == {1, 2, 3}


def test_a_few_step_students_gradient_comes_from_its_last_call_alone():
    method = Dmd2(times=TIMES)

    def loss(shifts, seed):
        def predict(z, t, cond, key=None):
            nearest = jnp.argmin(jnp.abs(t[0] - jnp.asarray(TIMES)))
            return Prediction(shifts[nearest] + 0.2 * z, z)

        nets = Nets(Denoiser(Cosine(), predict, (3,)), bent(REAL), bent(FAKE))
        return method.student_loss(jax.random.key(seed), BATCH, nets)[0]

    gradient = jax.jit(jax.grad(loss))
    counts = [jnp.flatnonzero(gradient(jnp.full(3, 0.3), seed)).tolist() for seed in range(12)]
    assert {len(count) for count in counts} == {1}
    assert {step for count in counts for step in count} == {0, 1, 2}


def test_the_sampler_makes_the_calls_that_were_trained():
    student, z = gaussian_denoiser(Cosine(), 0.5), jax.random.normal(KEY, (NUM, 3))
    t = jnp.full(NUM, time_of(Cosine(), 2.5))
    one = sample(Dmd2(), KEY, student, z, {})
    np.testing.assert_allclose(one, student(Cosine().sigma(t[0]) * z, t, {}).x, rtol=1e-5)
    few = [sample(Dmd2(times=TIMES), jax.random.key(k), student, z, {}) for k in (0, 0, 1)]
    np.testing.assert_array_equal(few[0], few[1])
    assert not np.allclose(few[0], few[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": (0.5, 0.8)}, r"times is \(0.5, 0.8\); expected times in \(0, 1\] that fall"),
        ({"times": (1.2, 0.8)}, r"times is \(1.2, 0.8\)"),
        ({"times": (0.5, 0.0)}, r"times is \(0.5, 0.0\)"),
        ({"w": -2.0}, "w is -2.0; expected a number from -1"),
        ({"gan_weight": 0.5, "discriminator_weight": 0.0}, "nothing would train the discriminator"),
        ({"gan_weight": -1.0}, "gan_weight is -1.0; expected a number from 0"),
        ({"discriminator_weight": -1.0}, "discriminator_weight is -1.0"),
        ({"fake_updates": 0}, "fake_updates is 0"),
        ({"weighting": "sn"}, "weighting is 'sn'; expected one of constant"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check(Dmd2(**change), Diffusion())


def test_a_teacher_must_know_all_times_and_the_null_where_it_is_guided():
    check(Dmd2(w=0.75, times=TIMES), Diffusion())
    check(Dmd2(), Diffusion(label_dropout=0.0))
    with pytest.raises(ValueError, match="no null condition"):
        check(Dmd2(w=0.75), Diffusion(label_dropout=0.0))
    with pytest.raises(ValueError, match="guiding it would guide twice"):
        check(Dmd2(), METHODS["guided"]())
    with pytest.raises(ValueError, match="the times of its 8 steps only"):
        check(Dmd2(), METHODS["progressive"](num_steps=8))


# What experiments/imagenet of tianweiy/DMD2 at 8d8fa55 sets, or main/edm/train_edm.py by default.
# An iteration here is dfake_gen_update_ratio of theirs.
RELEASED = {
    "optimizer": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip_norm": 10.0},  # max_grad_norm; AdamW's
    "weight_decay": 0.01,
    "warmup": 500 // 5,  # warmup_step
    "decay_to": 1.0,  # constant_with_warmup
    "ema_decay": 0.0,
    "batch_size": 7 * 40,  # nproc_per_node x batch_size
    "lora": 0,
}
METHOD = {
    "times": (),
    "sigma_init": 80.0,  # conditioning_sigma
    "w": 0.0,
    "fake_levels": ("karras", 0.002, 80.0),  # sigma_min, sigma_max; diffusion_gan_max_timestep 1000
    "weighting": "edm",  # 1 / sigma^2 + 1 / sigma_data^2
    "fake_updates": 5,  # dfake_gen_update_ratio
    "discriminator_weight": 1e-2,  # cls_loss_weight
    "discriminator": "spatial",  # cls_pred_branch
}
# Steps are of the checkpoints that were published, gan_weight is gen_cls_loss_weight.
SCRIPTS = {
    ("full", "s01_dmd2"): {"steps": 405_500, "rate": 2e-6, "gan_weight": 0.0, "start": ("", "")},
    ("full", "s02_gan"): {
        "steps": 548_000 - 405_500,
        "rate": 5e-7,
        "gan_weight": 3e-3,
        "start": ("dmd2", "dmd2"),  # ckpt_only_path: generator and guidance model
    },
    ("one_stage", "s01_gan"): {
        "steps": 193_500,
        "rate": 2e-6,
        "gan_weight": 3e-3,
        "start": ("", ""),
    },
}


@pytest.mark.parametrize(("size", "name"), SCRIPTS)
def test_the_imagenet_preset_has_the_numbers_of_the_released_scripts(size, name):
    config = load_config("imagenet64_dmd2", size)[1]
    assert config.matmul_precision == "default"  # allow_tf32
    stage = config.stages[name]
    script, given = SCRIPTS[size, name], stage.to_dict()
    options = {key: value for key, value in given["method"].items() if key != "name"}
    method = Dmd2(**options)
    assert {key: given[key] for key in RELEASED} == RELEASED
    assert {key: getattr(method, key) for key in METHOD} == METHOD
    assert stage.steps * method.fake_updates == script["steps"]
    assert (stage.learning_rate, method.gan_weight) == (script["rate"], script["gan_weight"])
    assert (stage.init, stage.init_fake, stage.teacher) == (*script["start"], "teacher")
    # get_sigmas_karras of edm_guidance.py, smallest first; randint(20, 981) leaves out 981.
    ramp = np.linspace(0, 1, 1000)
    sigmas = np.sort((80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)
    distribution, *ends = method.levels
    assert distribution == "karras"
    np.testing.assert_allclose(ends, sigmas[[20, 980]], rtol=1e-3)
