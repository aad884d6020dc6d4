"""Tests of edits with the smoke chain's networks, and with two rounds of encoders."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

import distill_jax
from distill_jax import edit
from distill_jax.config import halvings
from distill_jax.config import pipeline as pipeline_of
from distill_jax.diffusion.denoiser import NetworkSpec
from distill_jax.diffusion.noise import noise_of
from distill_jax.diffusion.prediction import PARAMETERIZATIONS
from distill_jax.diffusion.schedule import add_noise
from distill_jax.diffusion.spec import image_spec
from distill_jax.diffusion.trained import Renoise
from distill_jax.evaluation import compare
from distill_jax.methods import METHODS
from distill_jax.models.build import initial_params
from distill_jax.models.mlp import mlp
from distill_jax.run import pipeline, plan
from distill_jax.runtime.sharding import make_layout
from distill_jax.sampling import editing
from distill_jax.sampling.student import Student
from tests.test_commands import one_message, run
from tests.toys import filled, inputs_of, manifest_of, smoke_config

KEY = jax.random.key(0)
X = jax.random.uniform(KEY, (4, 8, 8, 1), minval=-1)
LABEL = np.asarray([1, 2, 3, 4])
LEFT = edit.read_mask("left", (8, 8, 1))


def never():
    return False


@pytest.fixture(scope="module")
def workdir(chain, tmp_path_factory):
    """Returns a workdir with the chain's teacher and decoders, and encoders of 2 steps and 1."""
    config = smoke_config()
    rates = {"steps": 2, "learning_rate": 1e-3, "w_range": (0.0, 4.0)}
    workdir = epath.Path(tmp_path_factory.mktemp("edit") / "digits")
    guided = workdir / "guided" / "final"
    shutil.copytree(chain / "s01_guided" / "final", guided)
    manifest = json.loads((guided / "manifest.json").read_text())
    del manifest["checksum"]
    manifest["trained"]["saturated"] = False  # Encoders need it; harmless after few updates.
    (guided / "manifest.json").write_text(json.dumps(manifest))
    options = {"method": "encoder", "teacher": str(guided)}
    config.stages = pipeline_of(*halvings(2, 1, **options, **rates))
    assert pipeline.run(plan.make(config, workdir), never)
    for stage in ("s00_teacher", "s06_n0002", "s07_n0001"):
        shutil.copytree(chain / stage / "final", workdir / stage / "final")
    return workdir


@pytest.fixture(scope="module")
def encoder(workdir):
    return distill_jax.load(workdir / "s00_n0002")


@pytest.fixture(scope="module")
def decoder(chain):
    return distill_jax.load(chain / "s06_n0002")


@pytest.fixture(scope="module")
def teacher(chain):
    return distill_jax.load(chain / "s00_teacher")


def test_an_encoder_saves_its_times_and_a_picture_of_images_and_noise(workdir, encoder):
    assert encoder.trained.sampler.times == (0.0, 0.5)
    assert encoder.trained.num_steps == 2
    with Image.open(workdir / "s00_n0002" / "grid.png") as image:
        assert image.size == (10 * 50, 2 * 50)


def test_an_encoder_draws_no_images_and_a_decoder_encodes_none(encoder, decoder):
    with pytest.raises(ValueError, match=r"is an encoder: .* call student.encode\(x, label\)"):
        encoder.sample(KEY, 4)
    with pytest.raises(ValueError, match="only decodes; encode with the encoder stage of 2 steps"):
        decoder.encode(X, LABEL)


def test_arguments_that_an_encoder_does_not_take_are_refused(encoder):
    for arguments, message in (
        ((X, None), "label is None; say what the images show"),
        ((X, 10), "label is 10; this network was trained on 0 to 9"),
        ((X, LABEL, -1.0), "expected a number from 0"),
        ((X, LABEL, 0.0, 4), "num_steps is 4; this student was made for 2"),
        ((X[:, :4], LABEL), r"images are of shape \(4, 8, 1\); this network was trained on"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder.encode(*arguments)


def test_a_sample_is_decoded_noise(decoder):
    k_z, _ = jax.random.split(KEY)
    x = decoder.decode(noise_of(k_z, 0, 4, (8, 8, 1)), LABEL, 1.0)
    np.testing.assert_array_equal(x, decoder.sample(KEY, 4, LABEL, 1.0))


def test_a_teacher_encodes_backwards_in_any_number_of_steps_and_guided(teacher):
    listening = dataclasses.replace(teacher, params=filled(teacher.params))
    z = listening.encode(X, LABEL, num_steps=3)
    np.testing.assert_allclose(listening.encode(X, LABEL, 0.0, 3), z, atol=1e-3)
    assert not np.allclose(listening.encode(X, LABEL, 3.0, 3), z, atol=0.1)
    errors = [
        float(np.abs(editing.roundtrip(teacher, teacher, X, LABEL, n) - X).mean()) for n in (2, 64)
    ]
    assert errors[1] < errors[0] / 2


def test_style_transfer_is_the_source_encoded_and_the_target_decoded(encoder, decoder):
    y = editing.style(encoder, decoder, X, LABEL, 8, w=1.0)
    z = encoder.encode(X, LABEL, 0.0)
    np.testing.assert_array_equal(y, decoder.decode(z, np.full(4, 8), 1.0))
    assert not np.allclose(y, editing.style(encoder, decoder, X, LABEL, 3, w=1.0))


def test_edits_depend_on_label_w_and_noise_and_compile_once(decoder):
    decoder = dataclasses.replace(decoder, params=filled(decoder.params))  # Hardly trained.

    def both(label, w, key):
        first = editing.sdedit(decoder, key, X, 1, label, w)
        return first, editing.inpaint(decoder, key, X, LEFT, label, w)

    base = both(3, 1.0, KEY)
    size = editing._edit._cache_size()
    for other in (both(4, 1.0, KEY), both(3, 4.0, KEY), both(3, 1.0, jax.random.key(1))):
        for a, b in zip(base, other, strict=True):
            assert not np.allclose(a, b, atol=1e-3)
    editing.sdedit(decoder, KEY, X, 2, 3, 1.0)
    assert editing._edit._cache_size() == size
    np.testing.assert_array_equal(base[1][:, :, 4:], X[:, :, 4:])


def test_a_start_outside_the_grid_and_an_encoder_to_edit_with_are_refused(encoder, decoder):
    for start in (0, 3):
        with pytest.raises(ValueError, match=f"start is {start}; expected 1 to 2"):
            editing.sdedit(decoder, KEY, X, start)
    with pytest.raises(ValueError, match="was trained with method 'encoder'; editing needs"):
        editing.inpaint(encoder, KEY, X, LEFT)


def test_a_network_without_labels_and_w_is_edited_without_them():
    sizes = image_spec((8, 8, 1), 0, 1)
    network_spec = NetworkSpec(mlp(sizes, width=8, blocks=1), PARAMETERIZATIONS["v"], sizes)
    method = METHODS["diffusion"](num_steps=3, label_dropout=0.0)
    manifest = manifest_of(method, (8, 8, 1), 0)
    params = filled(initial_params(KEY, network_spec, inputs_of(method)))
    student = Student(manifest, network_spec, params, make_layout({}, jax.devices()[:1]))
    again = editing.roundtrip(student, student, X, None)
    found = (again, editing.sdedit(student, KEY, X, 2), editing.inpaint(student, KEY, X, LEFT))
    assert all(np.isfinite(x).all() and x.shape == X.shape for x in found)
    with pytest.raises(ValueError, match="label is 3; this network was trained without labels"):
        editing.style(student, student, X, None, 3)


@pytest.mark.parametrize("shape", [(4, 4), (8,), (8, 8, 3), (3, 8, 8, 1), (1, 4, 8, 8, 1)])
def test_a_mask_of_another_size_than_the_images_is_refused(decoder, shape):
    message = r"the images are of shape \(8, 8, 1\); expected \(8, 8\), or \(4, 8, 8, 1\) for a"
    with pytest.raises(ValueError, match=message):
        decoder.inpaint(0, X, np.ones(shape), 3, 1.0)


def test_each_image_may_have_a_mask_and_a_seed_is_a_key(decoder):
    masks = np.stack([LEFT, LEFT, 1 - LEFT, 1 - LEFT])[..., None]
    y = decoder.inpaint(0, X, masks, LABEL, 1.0)
    np.testing.assert_array_equal(y[:2], editing.inpaint(decoder, KEY, X, LEFT, LABEL, 1.0)[:2])
    np.testing.assert_array_equal(y[2:, :, :4], X[2:, :, :4])
    again = decoder.img2img(0, X, 1, LABEL, 1.0)
    np.testing.assert_array_equal(again, editing.sdedit(decoder, KEY, X, 1, LABEL, 1.0))


def test_translation_from_an_earlier_time_keeps_more(encoder, decoder, teacher):
    full = decoder.translate(encoder, X, LABEL, 8, 1.0)
    np.testing.assert_array_equal(full, editing.style(encoder, decoder, X, LABEL, 8, 1.0))
    np.testing.assert_allclose(decoder.translate(encoder, X, LABEL, 8, 1.0, 2), full, atol=1e-4)
    near = decoder.translate(encoder, X, LABEL, 8, 1.0, 1)
    assert np.abs(near - X).mean() < np.abs(full - X).mean()
    fine = teacher.with_sampler(teacher.sampler(64))
    same = fine.translate(fine, X, LABEL, LABEL, start=8)
    assert np.abs(same - X).mean() < 0.02


def test_a_time_that_only_one_network_knows_is_refused(encoder, decoder, teacher):
    with pytest.raises(ValueError, match="start is 3; expected 1 to 2"):
        decoder.translate(encoder, X, LABEL, 8, 1.0, 3)
    with pytest.raises(ValueError, match="start is 1 of 2 steps, which is between two of the enc"):
        odd = teacher.with_sampler(teacher.sampler(3))
        decoder.translate(odd, X, LABEL, 8, 1.0, 1)
    with pytest.raises(ValueError, match="this student only decodes"):
        decoder.translate(decoder, X, LABEL, 8, 1.0, 1)
    small = dataclasses.replace(
        teacher, manifest=manifest_of(METHODS["diffusion"](), (4, 4, 1), 10)
    )
    with pytest.raises(ValueError, match="take both from one run"):
        decoder.translate(small, X[:, :4, :4], LABEL, 8, 1.0, 1)


def renoising(student, times, resolutions=()):
    """Returns the network as a generator of few calls, such as a DMD2 stage."""
    return student.with_sampler(Renoise(times, resolutions))


def test_students_that_renoise_are_edited_with_calls_at_their_own_times(decoder):
    student = renoising(decoder, (1.0, 0.5))
    y = student.img2img(0, X, 1, 3, 1.0)
    eps = noise_of(KEY, 0, 4, (8, 8, 1))
    half = jnp.full(4, 0.5)
    z = add_noise(student.network_spec.schedule, X, eps, half)
    cond = {"label": jnp.full(4, 3), "w": jnp.ones(4)}
    with student.precision():
        expected = jnp.clip(student.denoise(z, half, cond).x, -1, 1)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    y = student.inpaint(0, X, LEFT, 3, 1.0)
    np.testing.assert_array_equal(y[:, :, 4:], X[:, :, 4:])
    hidden = jnp.where(LEFT[..., None] > 0, 9.0, X)
    np.testing.assert_array_equal(student.inpaint(0, hidden, LEFT, 3, 1.0), y)
    np.testing.assert_allclose(
        student.inpaint(0, X, np.ones((8, 8)), 3, 1.0)[:2],
        student.inpaint(0, X[:2], np.ones((8, 8)), 3, 1.0),
        atol=1e-5,
    )
    with pytest.raises(ValueError, match="or calls that renoise at one resolution"):
        renoising(decoder, (1.0, 0.5), (4, 8)).img2img(0, X, 1, 3, 1.0)


def test_psnr_counts_decibels_per_image():
    y = X + np.asarray([0.02, 0.2, 2.0, 0.2]).reshape(4, 1, 1, 1)
    np.testing.assert_allclose(editing.psnr(X, y), [40, 20, 0, 20], atol=1e-3)


def test_the_report_has_rows_of_decoders_only(workdir):
    settings = {"w": (0.0,), "num_samples": 40, "ancestral": ()}
    assert compare.write_report(workdir, {"name": "digits"}, settings, never)
    rows = json.loads((workdir / "report.json").read_text())["rows"]
    students = [row["num_steps"] for row in rows if row["sampler"] == "student"]
    assert students == [2, 1]


def test_roundtrip_writes_a_table_and_a_picture_beside_reverse_ddim(workdir, tmp_path):
    out = tmp_path / "roundtrip.png"
    code, stdout, stderr = run("edit", "roundtrip", f"--workdir={workdir}", f"--out={out}")
    assert code == 0, stderr
    content = json.loads(out.with_suffix(".json").read_text())
    assert [row["num_steps"] for row in content["rows"]] == [2, 1]
    assert all(np.isfinite([row["distilled"], row["ddim"]]).all() for row in content["rows"])
    assert "| 2     |" in stdout
    assert out.with_suffix(".md").read_text().strip() in stdout
    with Image.open(out) as image:
        assert image.size == (10 * 50, 5 * 50)


def test_the_style_command_transfers_test_images(workdir, tmp_path):
    out = tmp_path / "x.npy"
    flags = ("--source-label=3", "--target-label", "8", "--num=6", f"--out={out}")
    networks = (f"--encoder={workdir / 's00_n0002'}", f"--student={workdir / 's06_n0002'}")
    code, stdout, stderr = run("edit", "style", *networks, *flags)
    assert code == 0, stderr
    assert f"style: {out}" in stdout.replace("\n", "")
    assert np.load(out).shape == (6, 8, 8, 1)


def test_sdedit_begins_at_a_step_of_the_student(workdir, tmp_path):
    out = tmp_path / "x.npy"
    flags = ("--source-label=3", "--target-label=8", "--num=6", f"--out={out}")
    command = ("edit", "sdedit", f"--student={workdir / 's06_n0002'}", *flags)
    code, _, stderr = run(*command, "--strength=0.5")
    assert code == 0, stderr
    assert np.load(out).shape == (6, 8, 8, 1)
    message = one_message(*run(*command, "--strength=0.3"))
    assert "--strength=0.3 is no time of the student's 2 steps; choose among 0.5, 1" in message


def test_an_unknown_task_is_one_message():
    message = one_message(*run("edit", "stile"))
    assert (
        "unknown task 'stile'; known: img2img, inpaint, roundtrip, sdedit, style; did you"
        in message
    )


def test_masks_are_the_half_or_square_to_draw(tmp_path):
    assert LEFT[:, :4].all()
    assert not LEFT[:, 4:].any()
    np.testing.assert_array_equal(edit.read_mask("right", (8, 8, 1)), 1 - LEFT)
    np.testing.assert_array_equal(edit.read_mask("top", (8, 8, 1)), LEFT.T)
    np.testing.assert_array_equal(edit.read_mask("bottom", (8, 8, 1)), 1 - LEFT.T)
    center = edit.read_mask("center", (8, 8, 3))
    assert center.sum() == center[2:6, 2:6].sum() == 16
    np.save(tmp_path / "m.npy", np.eye(8) * 7)
    np.testing.assert_array_equal(edit.read_mask(str(tmp_path / "m.npy"), (8, 8, 1)), np.eye(8))
    Image.fromarray(np.uint8(LEFT * 255)).save(tmp_path / "m.PNG")
    np.testing.assert_array_equal(edit.read_mask(str(tmp_path / "m.PNG"), (8, 8, 1)), LEFT)
    with pytest.raises(ValueError, match=r"is of shape \(8, 8\); the images are 4x4: expected"):
        edit.read_mask(str(tmp_path / "m.npy"), (4, 4, 1))
    with pytest.raises(ValueError, match="--mask=up is none of left, right, top, bottom, center a"):
        edit.read_mask("up", (8, 8, 1))
    np.save(tmp_path / "none.npy", np.zeros((8, 8)))
    with pytest.raises(ValueError, match="marks no pixel; expected a mask that is not 0 every"):
        edit.read_mask(str(tmp_path / "none.npy"), (8, 8, 1))


def test_images_are_read_from_an_array_or_a_folder(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    np.save(tmp_path / "x.npy", x)
    folder = epath.Path(tmp_path / "pictures")
    folder.mkdir()
    for i, image in enumerate(x):
        Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
    expected = x / np.float32(127.5) - 1
    for path in (epath.Path(tmp_path / "x.npy"), folder):
        np.testing.assert_allclose(edit.read_images(path, 1), expected)
    np.testing.assert_allclose(edit.read_images(folder, 3), expected.repeat(3, -1))
    Image.fromarray(x[0, :4, :, 0]).save(folder / "2.png")
    with pytest.raises(ValueError, match="3 pictures, not all of one size: 8x4, 8x8"):
        edit.read_images(folder, 1)


def test_pictures_of_palettes_and_single_bits_are_read_as_they_look(tmp_path):
    white = Image.new("L", (8, 8), 255)
    for name, mode in {"a.PNG": "P", "b.png": "1", "c.png": "RGBA", ".d.png": "L"}.items():
        white.convert(mode).save(tmp_path / name)
    for channels in (1, 3):
        x = edit.read_images(epath.Path(tmp_path), channels)
        np.testing.assert_array_equal(x, np.ones((3, 8, 8, channels)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (3.0 * np.ones((1, 8, 8, 1)), r"expected \(n, h, w, c\), uint8 or in \[-1, 1\]"),
        (np.ones((0, 8, 8, 1)), r"of shape \(0, 8, 8, 1\); expected \(n, h, w, c\)"),
        (np.asarray(["a"]), "holds <U1; expected one array of numbers"),
        (np.asarray([None]), r"cannot be read as a .npy array \(Object arrays"),
        (b"no array", r"cannot be read as a .npy array \("),
        (b"", r"cannot be read as a .npy array \("),
    ],
)
def test_a_file_without_images_is_refused(content, message, tmp_path):
    path = epath.Path(tmp_path / "x.npy")
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(ValueError, match=f"--images=.*x.npy .*{message}"):
        edit.read_images(path, 1)
    if isinstance(content, bytes):
        with pytest.raises(ValueError, match=f"--mask=.*x.npy .*{message}"):
            edit.read_mask(str(path), (8, 8, 1))
    for place, problem in ((tmp_path, "has no pictures with a suffix"), (tmp_path / "no", "is no")):
        with pytest.raises(ValueError, match=problem):
            edit.read_images(epath.Path(place), 1)


@pytest.mark.parametrize("shape", [(12, 12, 1), (8, 8, 3)])
def test_images_of_another_shape_than_the_network_are_refused(decoder, shape):
    x = np.zeros((4, *shape), np.float32)
    message = r"images are of shape .*; this network was trained on \(8, 8, 1\)"
    for refused in (
        lambda: editing.sdedit(decoder, KEY, x, 1, 3),
        lambda: editing.inpaint(decoder, KEY, x, LEFT, 3),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
