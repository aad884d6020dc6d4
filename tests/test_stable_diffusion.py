"""Tests of the road of docs/teachers.md: a pipeline in, few-step students out, by commands."""

import json

import numpy as np
import PIL.Image
import pytest

from distill_jax.evaluation import adherence
from distill_jax.models.diffusers_files import read_directory
from distill_jax.models.pretrained import torch_state
from distill_jax.sampling.loading import load
from tests import forks
from tests.stable_diffusion import LENGTH, MODEL, write_pipeline

PROMPT = "a red circle above a blue square"
# The chain of configs/sd15_guided.py on the pictures of shapes, with rounds of both samplers.
CONFIG = """
from distill_jax.config import halvings, latent_stages, pipeline, smoke, stable_diffusion


def get_config(size=""):
    config = stable_diffusion("{folder}/pipeline", size=16, **{model})
    config.data = dict(name="shapes", count=64, tests=64)
    config.conditioner.length = {length}
    first = latent_stages("{folder}/teacher", (2.0, 14.0), "full", first=4)
    stochastic = dict(method="stochastic", prefix="s", w_range=(2.0, 14.0), teacher="guided")
    rounds = halvings(start=4, end=2, steps=1, learning_rate=1e-4, **stochastic)
    config.stages = pipeline(*first.values(), *rounds)
    config = smoke(config, dtype="float32", remat="none")
    config.stages.s00_finetune.update(steps=1, learning_rate=0.0, ema_decay=0.0)
    for entry in config.stages.values():
        entry.steps = min(entry.steps, 2)
    config.evaluate.update(w=(2.0,), num_samples=10)
    return config
"""


def command(name, *flags):
    """Runs a command, and returns what it prints."""
    code, stdout, stderr = forks.run(f"distill_jax.{name}", *flags)
    assert code == 0, stderr
    return stdout + stderr


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """Returns a folder with a pipeline, its teacher, and a finished run from it."""
    folder = tmp_path_factory.mktemp("road")
    write_pipeline(folder / "pipeline")
    command("teachers", "diffusers", folder / "pipeline", f"--out={folder / 'teacher'}")
    text = CONFIG.format(folder=folder, model=MODEL, length=LENGTH)
    (folder / "config.py").write_text(text)
    given = f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}"
    command("main", *given, "--norehearse")
    return folder


def test_fine_tuning_starts_from_the_teachers_weights_on_another_schedule(road):
    teacher, tuned = load(road / "teacher"), load(road / "run" / "s00_finetune")
    told = teacher.manifest, tuned.manifest
    assert [each.parameterization for each in told] == ["eps", "v"]
    assert [each.schedule.get("zero_snr", False) for each in told] == [False, True]
    # Its learning rate is 0.
    for name, leaf in torch_state(teacher.params).items():
        np.testing.assert_array_equal(torch_state(tuned.params)[name].read(()), leaf.read(()))


@pytest.mark.parametrize("stage", ["s02_n0004", "s04_n0001"])
def test_students_draw_a_prompt(road, stage, tmp_path):
    out, given = tmp_path / "x.png", [f"--student={road / 'run' / stage}", "--num=2", "--w=7"]
    command("sample", *given, f"--prompt={PROMPT}", f"--out={out}")
    with PIL.Image.open(out) as image:
        assert image.size[0] >= 32
        assert np.asarray(image).std() > 0


def test_the_report_reads_the_attributes_of_every_student(road):
    rows = json.loads((road / "run" / "report.json").read_text())["rows"]
    stages = {path.parent.parent.name for path in (road / "run").glob("s*/final/manifest.json")}
    assert {row["stage"] for row in rows} == stages
    assert all({*adherence.ATTRIBUTES, "all, held-out pairs"} <= row.keys() for row in rows)


def test_a_student_goes_back_into_a_pipeline(road, tmp_path):
    stage = road / "run" / "s02_n0004"
    given = f"--student={stage}", f"--source={road / 'pipeline'}"
    command("export", *given, f"--out={tmp_path / 'out'}")
    found = read_directory(tmp_path / "out" / "unet", "UNet2DConditionModel")
    for name, leaf in torch_state(load(stage).params).items():
        np.testing.assert_array_equal(found.state[name].read(()), leaf.read(()), err_msg=name)
    scheduler = json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    assert scheduler["rescale_betas_zero_snr"]
    assert "num_inference_steps=4, guidance_scale=" in (tmp_path / "out/README.md").read_text()
