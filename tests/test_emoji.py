"""Tests of the road with published parts, configs/emoji_guided.py: files in, pictures out."""

import shutil

import jax
import numpy as np
import PIL.Image
import pytest
from etils import epath

from distill_jax.run import pipeline, plan
from distill_jax.sampling.loading import load
from distill_jax.storage import checkpoint
from tests import emoji, forks
from tests.test_configs import load_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the plan of a finished teacher."""
    folder = tmp_path_factory.mktemp("emoji")
    _, config = load_config("emoji_guided", "cpu")
    config.update_from_flattened_dict(emoji.write_parts(folder))
    config.model.update(width=32, blocks=1)
    config.batch_size, config.evaluate.w = 4, (0.0,)
    for name in sorted(config.stages)[1:]:
        del config.stages[name]
    config.stages.s00_teacher.update(steps=3, warmup=0)
    config.stages.s00_teacher.method.num_steps = 2
    made = plan.make(config, folder / "run")
    assert pipeline.run(made, stop=lambda: False)
    for part in ("codec", "conditioner"):  # The run has copies.
        shutil.rmtree(folder / part)
    return made


def test_a_network_of_latents_draws_from_prompts(run):
    student = load(run.workdir)
    assert (student.shape, student.image_shape) == ((8, 8, 32), (64, 64, 3))
    leaves = dict(student.manifest.spec.cond)
    assert leaves["text"].shape == (emoji.LENGTH, 16)
    x = student.sample(jax.random.key(0), 2, ["the 3", "that cafe"], 1.0)
    assert x.shape == (2, 64, 64, 3)
    assert np.isfinite(x).all()
    with PIL.Image.open(run.workdir / "s00_teacher" / "grid.png") as grid:
        assert grid.width == 66 * run.dataset.summary.counts["test"] < 10 * 66
    batch = next(run.dataset.batches(0, 0, 4))
    assert (batch.x.shape, batch.cond["text"].shape) == ((4, 8, 8, 32), (4, emoji.LENGTH, 16))


def test_both_designs_of_a_name_are_in_one_split(run):
    names = [set(run.codec.source.captions(split)) for split in ("train", "test")]
    assert all(names) and not names[0] & names[1]
    counts = run.dataset.summary.counts
    assert counts["train"] == 2 * len(names[0]) and counts["test"] == 2 * len(names[1])


def test_a_student_without_its_text_encoder_says_what_to_name(run, tmp_path):
    shutil.copytree(run.workdir / "s00_teacher" / "final", tmp_path / "s00_teacher" / "final")
    flags = ["--num=1", "--prompt=the 3", f"--out={tmp_path / 'x.png'}", "--w=1"]
    given = [f"--student={tmp_path}", f"--codec={run.codec.directory}", *flags]
    code, _, stderr = forks.run("distill_jax.sample", *given)
    assert code == 1
    assert "Traceback" not in stderr
    assert "Name the directory of the text encoder" in stderr
    assert stderr.strip().endswith("--conditioner=DIR")
    with pytest.raises(ValueError, match="needs ../../codec/final.*of the codec: .*--codec=DIR"):
        load(tmp_path)
    again = load(tmp_path, parts=[run.codec.directory, run.conditioner.directory])
    x = [each.sample(0, 1, "the 3", 1.0) for each in (again, load(run.workdir))]
    np.testing.assert_array_equal(*x)


def test_another_text_encoder_is_no_substitute(run, tmp_path):
    other = epath.Path(tmp_path / "other")
    params = jax.tree.map(lambda x: x + 1, run.conditioner.conditioner.params)
    manifest = checkpoint.read_manifest(run.conditioner.final)
    checkpoint.save_final(other / "final", params, manifest)
    shutil.copytree(run.workdir / "s00_teacher" / "final", tmp_path / "s00_teacher" / "final")
    with pytest.raises(ValueError, match="with the fingerprint .*--conditioner=DIR"):
        load(tmp_path, parts=[run.codec.directory, other])
