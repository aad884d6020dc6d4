"""A chain from a small pipeline of Stable Diffusion 3, by the commands: train, sample, export."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath

from distill_jax.config import flow_latents, pipeline, stage
from distill_jax.evaluation import compare
from distill_jax.evaluation.protocols import prompts_for
from distill_jax.run import pipeline as run_pipeline
from distill_jax.run import plan
from distill_jax.sampling.loading import describe, load, with_parts_of
from distill_jax.teachers import importing
from tests import flows
from tests.models.pretrained import text
from tests.test_commands import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with a pipeline, its teacher, and the run of a student of two steps."""
    folder = epath.Path(tmp_path_factory.mktemp("flows"))
    changes = flows.write_parts(folder, "sd3")
    config = flow_latents("", name="mmdit")
    half = dict(steps=2, learning_rate=1e-3, num_steps=2, label_dropout=0.1)
    config.stages = pipeline(stage("half", "progressive", teacher=str(folder / "teacher"), **half))
    with config.unlocked():
        kept = {key: value for key, value in changes.items() if not key.startswith("stages")}
        config.update_from_flattened_dict(kept)
        config.model.update(dtype="float32", remat="none")
    config.batch_size, config.evaluate.num_samples, config.frozen_dtype = 4, 8, "float32"
    planned = plan.make(config, folder / "run")
    assert run_pipeline.run(planned, stop=lambda: False)
    settings = config.evaluate.to_dict()
    data = config.data.to_dict()
    settings["prompts"] = prompts_for(data, 8)
    assert compare.write_report(
        folder / "run", data, settings, lambda: False, parts=[folder / "teacher"]
    )
    return folder


def test_the_report_compares_with_an_imported_teacher_on_the_same_prompts(folder):
    rows = json.loads((folder / "run" / "report.json").read_text())["rows"]
    assert {(row["role"], row["num_steps"]) for row in rows} == {
        ("teacher", 28),
        ("teacher", 2),
        ("student", 2),
    }
    student = describe(folder / "run")
    teacher = with_parts_of(student, describe(folder / "teacher"))
    assert teacher.takes_prompts
    assert with_parts_of(student, teacher) is teacher
    other = dataclasses.replace(student.manifest, spec=student.manifest.spec._replace(cond=()))
    alone = describe(folder / "teacher")
    assert with_parts_of(dataclasses.replace(student, manifest=other), alone) is alone


def test_the_cached_text_has_the_pooled_vector(folder):
    cond = load(folder / "run").text(["a fox"], 1)
    widths = text.SMALL["projection_dim"] + text.BIG["projection_dim"]
    assert cond["text"].shape == (1, text.LENGTH + text.T5_LENGTH, text.WIDTH)
    assert cond["pooled"].shape == (1, widths)


def test_a_student_is_sampled_exported_and_imported_again(folder, tmp_path):
    drawn = tmp_path / "x.npy"
    student = f"--student={folder / 'run'}"
    code, _, stderr = run("sample", student, "--prompt=a red fox", "--num=2", f"--out={drawn}")
    assert code == 0, stderr
    assert np.load(drawn).shape == (2, 16, 16, 3)
    out = tmp_path / "out"
    source = f"--source={folder / 'pipeline'}"
    code, stdout, stderr = run("export", student, source, f"--out={out}")
    assert code == 0, stderr
    assert "wrote s00_half as diffusers to " in stdout
    index = json.loads((out / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    assert (out / "tokenizer_3" / "tokenizer.json").exists()
    given = {"length": text.T5_LENGTH}
    again = load(importing.convert("diffusers", out, tmp_path / "again", given=given))
    assert (again.trained.num_steps, again.trained.all_times) == (2, False)
    jax.tree.map(np.testing.assert_array_equal, again.params, load(folder / "run").params)
