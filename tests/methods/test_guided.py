import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.prediction import Prediction
from distill_jax.diffusion.schedule import Cosine, expand
from distill_jax.methods import METHODS, Nets
from distill_jax.models.build import initial_params
from distill_jax.models.graft import graft
from tests.toys import check, constant_denoiser, filled, inputs_of, make_batch, tiny_network

Guided, Diffusion = METHODS["guided"], METHODS["diffusion"]
SHAPE = (4, 4, 1)
BATCH = make_batch(
    jax.random.uniform(jax.random.key(0), (32, *SHAPE), minval=-1),
    {"label": jnp.arange(32) % 3},
    {"label": jnp.full((32,), 3)},
)


def teacher_and_grafted_student():
    network_spec = tiny_network()
    teacher = filled(initial_params(jax.random.key(1), network_spec, inputs_of(Diffusion())))
    fresh = initial_params(jax.random.key(2), network_spec, inputs_of(Guided()))
    return network_spec(teacher), network_spec(graft(fresh, teacher, new=("w_embed",)))


def test_a_grafted_student_is_the_conditional_teacher_at_every_w():
    teacher, student = teacher_and_grafted_student()
    t = jnp.linspace(0, 1, 32)
    w = jnp.linspace(0, 4, 32)
    cond = {**BATCH.cond, "w": w}
    np.testing.assert_array_equal(student(BATCH.x, t, cond).x, teacher(BATCH.x, t, BATCH.cond).x)


def test_loss_of_a_grafted_student_is_zero_at_w_zero_and_not_above():
    teacher, student = teacher_and_grafted_student()
    losses = []
    for w in (0.0, 1.0):
        method = Guided(w_range=(w, w), clip_target=False)
        losses.append(float(method.loss(jax.random.key(3), BATCH, Nets(student, teacher))[0]))
    # Equal but for the rounding of one batch of 64 against one of 32, times weights up to e^20.
    assert losses[0] < 1e-3 * losses[1]


def test_the_target_is_the_extrapolation_from_the_null_label_by_w():
    def by_label(z, t, cond):
        x = expand(jnp.where(cond["label"] == 3, 0.1, 0.2), z) + 0 * z
        return Prediction(x, z)

    seen = {}

    def student(z, t, cond):
        seen.update(cond)
        x = expand(0.2 + 0.1 * cond["w"], z) + 0 * z
        return Prediction(x, z)

    nets = Nets(Denoiser(Cosine(), student), Denoiser(Cosine(), by_label))
    method = Guided(w_range=(0.5, 2.0), clip_target=False, weighting="constant")
    loss, _ = method.loss(jax.random.key(0), BATCH, nets)
    assert float(loss) < 1e-12
    assert 0.5 <= float(seen["w"].min()) < float(seen["w"].max()) <= 2.0


@pytest.mark.parametrize("beyond", [1.0, 1.7, 40.0])
def test_a_clipped_target_is_met_by_everything_beyond_it(beyond):
    nets = Nets(constant_denoiser(Cosine(), beyond), constant_denoiser(Cosine(), 3.0))
    loss, _ = Guided(w_range=(0.0, 4.0)).loss(jax.random.key(0), BATCH, nets)
    assert float(loss) == 0


@pytest.mark.parametrize("inside", [0.9, -1.5])
def test_a_clipped_target_is_missed_by_everything_else(inside):
    nets = Nets(constant_denoiser(Cosine(), inside), constant_denoiser(Cosine(), 3.0))
    method = Guided(w_range=(0.0, 4.0), weighting="constant")
    loss, _ = method.loss(jax.random.key(0), BATCH, nets)
    np.testing.assert_allclose(float(loss), (1 - inside) ** 2, rtol=1e-5)


@pytest.mark.parametrize("w_range", [(2.0, 1.0), (-1.0, 1.0), (1.0,)])
def test_a_w_range_that_is_reversed_or_negative_is_refused(w_range):
    with pytest.raises(ValueError, match="w_range is"):
        check(Guided(w_range=w_range), Diffusion())


def test_a_teacher_that_takes_w_is_refused():
    with pytest.raises(ValueError, match="guiding it would guide twice"):
        check(Guided(), Guided())


def test_a_teacher_without_label_dropout_is_refused_naming_the_remedy():
    with pytest.raises(ValueError, match=r"Fine-tune it.*stage\(\"finetune\", \"diffusion\""):
        check(Guided(), Diffusion(label_dropout=0.0))
