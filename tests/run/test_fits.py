"""Tests of a chain on the latents of a codec that the run fits first."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.evaluation import compare
from distill_jax.run import pipeline, plan
from distill_jax.sampling.editing import inpaint, sdedit
from distill_jax.sampling.loading import load
from tests.toys import smoke_config

CODEC = {"name": "patch_pca", "patch": 2, "channels": 3}


def never():
    return False


def latent_config(codec=None):
    """Returns a config of a teacher, a guided stage and one halving, on latents."""
    config = smoke_config()
    config.codec = CODEC if codec is None else codec
    stages = config.stages
    config.stages = {name: stages[name] for name in sorted(stages)[:2]}
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = plan.make(latent_config(), tmp_path_factory.mktemp("latents"))
    assert not run.codec.finished
    assert pipeline.run(run, never)
    return run


def test_networks_work_on_latents_and_samples_are_images(run):
    student = load(run.workdir)
    assert (student.shape, student.image_shape) == ((4, 4, 3), (8, 8, 1))
    assert not student.manifest.spec.bounded
    x = student.sample(jax.random.key(0), 20, w=1.0)
    assert x.shape == (20, 8, 8, 1)
    assert np.abs(x).max() <= 1
    reference = json.loads((student.directory / "manifest.json").read_text())["codec"]
    assert reference["path"] == "../../codec/final"


def test_batches_are_the_latents_of_the_images_of_the_dataset(run):
    mine, theirs = (next(d.batches(3, 5, 16)) for d in (run.dataset, run.codec.source))
    np.testing.assert_array_equal(mine.index, theirs.index)
    np.testing.assert_array_equal(mine.cond["label"], theirs.cond["label"])
    np.testing.assert_allclose(mine.x, run.codec.codec.encode(jnp.asarray(theirs.x)), atol=1e-6)
    # Images lie near the plane of three components out of four.
    assert np.abs(run.codec.codec.decode(jnp.asarray(mine.x)) - theirs.x).mean() < 0.12


def test_images_are_encoded_before_they_are_edited_and_decoded_after(run):
    teacher, x = load(run.workdir / "s00_teacher"), run.dataset.images("test", 6).x
    label = np.zeros(6, np.int32)
    z = teacher.encode(x, label, num_steps=64)
    assert z.shape == (6, 4, 4, 3)
    lost = np.abs(teacher.codec.decode(teacher.latents(x)) - x).mean()
    y = teacher.decode(z, label, num_steps=64)
    assert np.abs(y - x).mean() < lost + 0.3
    edited = sdedit(teacher, jax.random.key(0), x, 1, label, num_steps=8)
    assert edited.shape == x.shape
    mask = np.zeros((8, 8))
    mask[:, 3:] = 1  # It cuts patches in two.
    filled = np.asarray(inpaint(teacher, jax.random.key(0), x, mask, label, num_steps=4))
    np.testing.assert_array_equal(filled[:, :, :3], x[:, :, :3])
    assert (np.abs(filled - x)[:, :, 3:].max(axis=(1, 2, 3)) > 0.1).all()
    with pytest.raises(ValueError, match=r"images are of shape \(4, 4, 3\)"):
        teacher.encode(np.zeros((1, 4, 4, 3)), 0)


def test_a_report_compares_images(run):
    data, settings = {"name": "digits"}, {"w": (1.0,), "num_samples": 100, "ancestral": ()}
    assert compare.write_report(run.workdir, data, settings, never, parts=run.parts)
    assert "FD-digits" in (run.workdir / "report.md").read_text()


def test_a_finished_codec_is_not_fitted_again(run):
    before = (run.codec.final / "manifest.json").stat().mtime
    assert not pipeline.run(plan.make(latent_config(), run.workdir), never)
    assert (run.codec.final / "manifest.json").stat().mtime == before


def test_another_run_takes_a_finished_codec_by_its_path(run, tmp_path):
    config = latent_config({"path": str(run.workdir / "codec")})
    del config.stages["s01_guided"]
    other = plan.make(config, tmp_path)
    assert pipeline.run(other, never)
    assert not (tmp_path / "codec").exists()
    with pytest.raises(ValueError, match=r"needs .*/codec/final, .*--codec=DIR"):
        load(tmp_path)
    mine, theirs = load(tmp_path, parts=other.parts), load(run.workdir / "s00_teacher")
    for a, b in zip(jax.tree.leaves(mine.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_workdir_with_another_codec_is_refused(run, tmp_path):
    shutil.copytree(run.workdir / "codec", tmp_path / "codec")
    config = latent_config({**CODEC, "channels": 4})
    with pytest.raises(ValueError, match="asks for PatchPca.*choose another --workdir"):
        pipeline.run(plan.make(config, tmp_path), never)


@pytest.mark.parametrize(
    ("codec", "error", "message"),
    [
        ({"name": "patch_pc"}, KeyError, "unknown codec 'patch_pc'.*did you mean 'patch_pca'"),
        ({"name": "patch_pca", "patches": 2}, KeyError, "does not take 'patches'"),
        ({"name": "patch_pca", "patch": 3}, ValueError, "codec.patch is 3"),
        ({"path": "nowhere/codec"}, FileNotFoundError, "has no finished network"),
        ({"path": "a", "name": "patch_pca"}, KeyError, "does not take 'path'"),
        ({"path": "a", "patch": 2}, ValueError, "expected a `path` only"),
    ],
)
def test_an_invalid_codec_is_refused_when_planned(tmp_path, codec, error, message):
    with pytest.raises(error, match=message):
        plan.make(latent_config(codec), tmp_path)


def test_a_codec_file_of_something_else_is_refused(run, tmp_path):
    config = latent_config({"path": str(run.workdir / "s00_teacher")})
    with pytest.raises(ValueError, match="does not describe a codec"):
        plan.make(config, tmp_path)
