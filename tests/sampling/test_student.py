import dataclasses
import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import distill_jax
from distill_jax.diffusion.denoiser import guided
from distill_jax.diffusion.trained import Ancestral, Ddim, Guidance, Heun, Renoise, Stochastic
from distill_jax.sampling.batched import Draw
from distill_jax.sampling.editing import sdedit
from distill_jax.storage import checksums

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def student(chain):
    return distill_jax.load(chain / "s06_n0002")


@pytest.fixture(scope="module")
def teacher(chain):
    return distill_jax.load(chain / "s00_teacher")


def test_a_workdir_a_stage_and_a_final_directory_all_lead_to_a_network(chain):
    assert distill_jax.load(chain).manifest.stage == "s07_n0001"
    assert distill_jax.load(chain / "s05_n0004").manifest.stage == "s05_n0004"
    assert distill_jax.load(str(chain / "s05_n0004" / "final")).trained.num_steps == 4


def test_samples_have_the_shape_of_the_data_and_its_range(student):
    x = student.sample(KEY, 5, label=3, w=1.5)
    assert x.shape == (5, 8, 8, 1)
    assert float(jnp.abs(x).max()) <= 1
    assert student.calls() == 2


def test_the_same_key_gives_the_same_images_and_another_key_others(student):
    a, b = (student.sample(KEY, 4, w=1.0) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, student.sample(jax.random.key(1), 4, w=1.0))


SAMPLERS = {
    "ddim": Ddim(4),
    "ancestral": Ancestral(4, 0.5),
    "heun": Heun(4),
    "heun, churned": Heun(4, churn=2.0),
    "stochastic": Stochastic(4),
    "renoise": Renoise((1.0, 0.6, 0.3)),
    "renoise, two sizes": Renoise((1.0, 0.5), (4, 8)),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_images_do_not_depend_on_how_they_were_batched(teacher, name):
    """Equal up to rounding: a product of other sizes adds in another order."""
    if name == "renoise, two sizes":
        teacher = whatever_its_size(teacher)
    drawn = teacher.with_sampler(SAMPLERS[name])
    whole = drawn.sample(KEY, 10, w=1.0)
    parts = [drawn.sample(KEY, num, w=1.0, first=first) for first, num in ((0, 3), (3, 1), (4, 6))]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
    assert len({tuple(np.ravel(image)) for image in np.asarray(whole)}) == 10
    for batch in (3, 10):
        np.testing.assert_allclose(Draw(10, batch=batch)(drawn, 1.0)[0], whole, atol=1e-5)


def whatever_its_size(student):
    """Returns the student with a network for images of any size: x is half of z."""

    def apply(params, z, t, cond, key=None):
        return z / 2

    network_spec = student.network_spec
    network = network_spec.network._replace(apply=apply)
    network_spec = dataclasses.replace(network_spec, network=network)
    return dataclasses.replace(student, network_spec=network_spec)


def test_noise_of_edits_is_that_of_each_image(teacher):
    x = np.zeros((5, 8, 8, 1))
    edited = [sdedit(teacher, KEY, x[:num], 2, 3, num_steps=4) for num in (5, 2)]
    np.testing.assert_allclose(edited[0][:2], edited[1], atol=1e-5)


def test_a_trained_student_listens_to_w(student):
    a, b = (student.sample(KEY, 4, w=w) for w in (0.0, 4.0))
    assert not np.array_equal(a, b)


def test_labels_are_taken_in_turn_by_default(student):
    np.testing.assert_array_equal(
        student.sample(KEY, 12, w=1.0), student.sample(KEY, 12, label=np.arange(12) % 10, w=1.0)
    )


def test_one_program_serves_every_w_and_every_number_of_steps(teacher):
    from distill_jax.sampling.drawing import run_sampler

    teacher.sample(KEY, 3, w=1.0, num_steps=2)
    size = run_sampler._cache_size()
    results = [teacher.sample(KEY, 3, w=w, num_steps=n) for w, n in ((0.0, 1), (3.0, 5), (4.0, 64))]
    assert run_sampler._cache_size() == size
    assert not np.allclose(results[0], results[1])


def test_a_teacher_of_edms_sampler_counts_its_calls_and_is_edited_by_ddim(teacher):
    heun = teacher.with_sampler(Heun(4))
    assert (heun.calls(), heun.calls(w=1.0), heun.calls(num_steps=18)) == (7, 14, 35)
    x = teacher.sample(KEY, 2, w=1.0, num_steps=4)
    edited = [sdedit(each, KEY, x, 2, 3, num_steps=4) for each in (heun, teacher)]
    np.testing.assert_array_equal(*edited)


def test_a_teacher_is_guided_with_two_calls_and_sampled_plainly_without_w(teacher):
    assert teacher.calls(num_steps=8) == 8
    assert teacher.calls(w=1.0, num_steps=8) == 16
    plain = teacher.sample(KEY, 4, num_steps=3)
    np.testing.assert_allclose(teacher.sample(KEY, 4, w=0.0, num_steps=3), plain, atol=1e-4)


def test_denoise_is_the_seam(student):
    z, t = jnp.ones((2, 8, 8, 1)), jnp.asarray([0.3, 0.9])
    prediction = student.denoise(z, t, {"label": jnp.asarray([1, 2]), "w": jnp.ones(2)})
    schedule = student.network_spec.schedule
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    again = alpha[:, None, None, None] * prediction.x + sigma[:, None, None, None] * prediction.eps
    np.testing.assert_allclose(again, z, atol=1e-5)


def test_a_student_with_w_refuses_a_second_guidance(student):
    twice = guided(student.denoiser, 1.0, {"label": jnp.full((2,), 10)})
    cond = {"label": jnp.zeros(2, jnp.int32), "w": jnp.ones(2)}
    with pytest.raises(ValueError, match="already in its weights"):
        twice(jnp.ones((2, 8, 8, 1)), jnp.ones(2), cond)


def test_w_outside_the_trained_range_warns_and_inside_does_not(student):
    with pytest.warns(UserWarning, match=r"w is 5.0, outside the range \[0, 4\]"):
        student.sample(KEY, 2, w=5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student.sample(KEY, 2, w=np.asarray([0.0, 4.0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": 10}, "label is 10; this network was trained on 0 to 9"),
        ({"label": -1}, "label is -1"),
        ({"label": np.asarray([1.5, 2.0])}, "expected an integer"),
        ({"label": np.arange(3)}, "expected an integer, or 2 of them"),
        ({"w": -0.5}, "expected a number from 0"),
        ({"w": float("nan")}, "expected a number from 0"),
        ({"w": float("inf")}, "expected a number from 0 to 1000"),
        ({"num_steps": 10**11}, "expected a whole number to 100,000"),
        ({"w": np.ones(3)}, "or 2 of them"),
        ({"num_steps": 4}, "this student was made for 2"),
    ],
)
def test_what_a_student_does_not_know_is_refused(student, arguments, message):
    with pytest.raises(ValueError, match=message):
        student.sample(KEY, 2, **arguments)


def test_a_network_without_null_label_refuses_w(teacher):
    trained = teacher.trained._replace(guidance=Guidance(null=False))
    manifest = dataclasses.replace(teacher.manifest, trained=trained)
    with pytest.raises(ValueError, match="no null condition to guide against"):
        dataclasses.replace(teacher, manifest=manifest).sample(KEY, 2, w=1.0)


@pytest.fixture
def copy(chain, tmp_path):
    """A copy of a stage that a test may damage."""
    return shutil.copytree(chain / "s07_n0001", tmp_path / "student")


def test_a_finished_network_may_be_moved_and_needs_no_config(copy, chain):
    x = distill_jax.load(copy).sample(KEY, 2, w=1.0)
    np.testing.assert_array_equal(x, distill_jax.load(chain).sample(KEY, 2, w=1.0))


def test_a_directory_without_manifest_is_refused(copy):
    (copy / "final" / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no finished network"):
        distill_jax.load(copy)


def test_a_newer_format_is_refused(copy):
    path = copy / "final" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format": checksums.FORMAT + 1}))
    with pytest.raises(ValueError, match="install a newer one"):
        distill_jax.load(copy)


def test_damaged_weights_are_refused(copy):
    files = (path for path in (copy / "final" / "params").rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(content)
    with pytest.raises(ValueError, match="wrong checksum"):
        distill_jax.load(copy)


def test_a_seed_of_32_bits_is_a_key(student):
    for seed in (0, 2**32 - 1):
        np.testing.assert_array_equal(
            student.sample(seed, 2), student.sample(jax.random.key(seed), 2)
        )
    for seed in (-1, 2**32, True):
        with pytest.raises(ValueError, match="expected a whole number from 0 to 4294967295"):
            student.sample(seed, 2)


def test_more_images_than_the_memory_holds_are_refused_before_they_are_drawn(student):
    with pytest.raises(ValueError, match="take 25,600.0 GB, which is more than half"):
        Draw(10**11)(student, None)


def test_a_network_without_guidance_takes_the_w_of_its_weights(teacher):
    trained = teacher.trained._replace(guidance=Guidance(fixed_w=1.3))
    baked = dataclasses.replace(
        teacher, manifest=dataclasses.replace(teacher.manifest, trained=trained)
    )
    np.testing.assert_array_equal(baked.sample(KEY, 2, w=1.3), baked.sample(KEY, 2))
    with pytest.raises(ValueError, match="this network takes no w"):
        baked.sample(KEY, 2, w=0.0)
