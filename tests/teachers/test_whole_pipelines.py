"""Tests of imported networks with the text encoder and the autoencoder of their pipelines."""

import json

import pytest
from etils import epath
from PIL import Image

from distill_jax.sampling.loading import describe, load
from distill_jax.teachers import checks, importing
from tests.teachers.test_diffusers import write
from tests.teachers.whole import write_whole
from tests.test_commands import run

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


def test_a_network_without_its_pipeline_or_for_inpainting_says_what_it_lacks(folder, tmp_path):
    assert checks.lacks(describe(folder / "teacher")).startswith("name its text encoder")
    importing.convert("diffusers", write(tmp_path / "sd", "inpaint"), tmp_path / "x")
    assert checks.lacks(describe(tmp_path / "x")).startswith("it takes inpaint")


def test_parts_of_another_pipeline_are_one_message(folder, tmp_path):
    other = write_whole(tmp_path / "sd")
    place = other / "text_encoder" / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "max_position_embeddings": 6}))
    with pytest.raises(ValueError, match="conditioner.length is 7; this network takes at most 6"):
        load(folder / "teacher", parts=[other])
