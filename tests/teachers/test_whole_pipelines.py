"""Tests of imported networks with the text encoder and the autoencoder of their pipelines."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from distill_jax.sampling.loading import describe, load
from distill_jax.storage import checkpoint
from distill_jax.teachers import checks, importing
from distill_jax.teachers.pipelines import write_pipeline
from tests.models.diffusers import SIZES
from tests.models.test_diffusers import unet
from tests.teachers.test_diffusers import write
from tests.teachers.test_dit import write as write_dit
from tests.teachers.test_pipelines import MANIFEST
from tests.teachers.whole import write_whole
from tests.test_commands import one_message, run

TEXTS = ["the cafe", "they"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with a pipeline in half precision, and the network that was read from it."""
    folder = epath.Path(tmp_path_factory.mktemp("whole"))
    importing.convert("diffusers", write_whole(folder / "sd", dtype="float16"), folder / "teacher")
    return folder


def test_check_draws_prompts_through_the_parts_of_the_pipeline(folder):
    given = f"--pipeline={folder / 'sd'}", "--num=3", "--num_steps=2"
    prompts = [f"--prompt={text}" for text in TEXTS]
    code, stdout, stderr = run("teachers", "check", str(folder / "teacher"), *given, *prompts)
    assert code == 0, stderr
    assert "images           8x8x4, text 7x12" in stdout
    assert f"samples: {folder / 'teacher' / 'grid.png'}" in stdout
    with Image.open(folder / "teacher" / "grid.png") as image:
        assert image.size == (3 * 34, 34)  # With a border.
        assert image.info["prompts"].splitlines() == TEXTS


def test_files_in_half_precision_only_are_read_as_they_are_and_exported_under_plain_names(
    student, folder, tmp_path
):
    halved = pathlib.Path(shutil.copytree(folder / "sd", tmp_path / "sd"))
    for place in ("unet", "vae", "text_encoder"):
        (file,) = (halved / place).glob("*.safetensors")
        file.rename(file.with_suffix(".fp16.safetensors"))
    loaded = load(importing.convert("diffusers", halved, tmp_path / "x"), parts=[halved])
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {np.dtype("float16")}
    assert (loaded.image_shape, loaded.takes_prompts) == ((32, 32, 3), True)
    out = write_pipeline(student[0], halved, tmp_path / "out")
    names = {path.name for path in pathlib.Path(out).rglob("*.safetensors")}
    assert names == {"diffusion_pytorch_model.safetensors", "model.safetensors"}


def test_a_dit_draws_images_with_the_autoencoder_of_its_pipeline(folder, tmp_path):
    pipeline = write_dit(tmp_path / "dit")
    shutil.copytree(folder / "sd" / "vae", pipeline / "vae", dirs_exist_ok=True)
    importing.convert("diffusers", pipeline, tmp_path / "x")
    teacher = load(tmp_path / "x", parts=[pipeline])
    assert (checks.lacks(teacher), teacher.takes_prompts) == ("", False)
    assert checks.draw(teacher, 2, 1, ()).shape == (2, 32, 32, 3)


def test_a_network_without_its_pipeline_says_what_it_lacks(folder):
    assert checks.lacks(describe(folder / "teacher")).startswith("it needs the autoencoder")


def test_a_teacher_that_inpaints_draws_from_texts_and_images_with_guidance(tmp_path):
    pipeline = write_whole(tmp_path / "sd", "inpaint")
    importing.convert("diffusers", pipeline, tmp_path / "x")
    teacher = load(tmp_path / "x", parts=[pipeline])
    assert checks.lacks(teacher) == ""
    drawn = checks.draw(teacher, 2, 1, TEXTS)
    x = np.linspace(-1, 1, 2 * 32 * 32 * 3, dtype=np.float32).reshape(2, 32, 32, 3)
    mask = np.eye(32) > 0
    found = np.asarray(teacher.inpaint(0, x, mask, TEXTS, checks.W, 1))
    assert drawn.shape == found.shape
    np.testing.assert_array_equal(found[:, ~mask], x[:, ~mask])
    assert np.abs(found[:, mask] - x[:, mask]).max() > 1e-3


def test_parts_of_another_pipeline_are_one_message(folder, tmp_path):
    other = write_whole(tmp_path / "sd")
    place = other / "text_encoder" / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "max_position_embeddings": 6}))
    with pytest.raises(ValueError, match="conditioner.length is 7; this network takes at most 6"):
        load(folder / "teacher", parts=[other])


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """Returns a student that takes w, with the parts of a pipeline, and that pipeline."""
    folder = epath.Path(tmp_path_factory.mktemp("student"))
    final = folder / "s03_n0004" / "final"
    checkpoint.save_final(final, unet("w", SIZES[0])[1], MANIFEST.to_json())
    source = write_whole(folder / "sd")
    return load(final, parts=[source]), source


def test_an_exported_student_is_imported_as_it_was(student, tmp_path):
    ours, source = student
    out = write_pipeline(ours, source, tmp_path / "out")
    again = load(importing.convert("diffusers", out, tmp_path / "x"), parts=[out])
    assert again.trained == ours.trained
    assert again.manifest.spec == ours.manifest.spec
    assert again.manifest.schedule == {**ours.manifest.schedule, "num_steps": 1000}
    jax.tree.map(np.testing.assert_array_equal, again.params, ours.params)
    drawn = [each.sample(0, 2, TEXTS, 3.0) for each in (ours, again)]
    np.testing.assert_array_equal(*drawn)
    assert np.abs(drawn[0][0] - drawn[0][1]).max() > 1e-3
    twice = write_pipeline(again, out, tmp_path / "twice")
    files = [path.relative_to(out) for path in pathlib.Path(out).rglob("*") if path.is_file()]
    assert len(files) > 8
    for file in files:
        assert (twice / file).read_bytes() == (out / file).read_bytes(), file


def test_a_student_of_others_needs_its_steps_and_its_range_of_w(tmp_path):
    folder = write(tmp_path / "sd", "w")
    place = f"--out={tmp_path / 'x'}"
    message = one_message(*run("teachers", "diffusers", str(folder), place))
    assert "say its num_steps, for example --set num_steps=4 --set w_range=[2,14]" in message
    given = {"num_steps": 4, "w_range": [14, 2]}
    with pytest.raises(ValueError, match=r"w_range is .* expected .low, high. with 0 <= low"):
        importing.convert("diffusers", folder, tmp_path / "x", given=given)
    with pytest.raises(ValueError, match="no --set label_dropout; it takes: num_steps, w_range"):
        importing.convert("diffusers", folder, tmp_path / "x", given={"label_dropout": 0.1})
    given["w_range"] = [2, 14]
    final = importing.convert("diffusers", folder, tmp_path / "x", given=given)
    expected = dataclasses.replace(MANIFEST, parameterization="eps").trained
    assert describe(final).trained == expected
    write(folder, "w", scheduler={"_class_name": "LCMScheduler"})
    with pytest.raises(ValueError, match="that of a consistency model, which adds noise between"):
        importing.convert("diffusers", folder, tmp_path / "y", given=given)
