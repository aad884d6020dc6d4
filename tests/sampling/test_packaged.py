"""Tests of the students that come with the package."""

import json
import os
import pathlib

import numpy as np
import pytest
from etils import epath

from distill_jax.data import scenes
from distill_jax.data.shapes import seen
from distill_jax.diffusion.pixels import to_uint8
from distill_jax.evaluation import compare
from distill_jax.runtime.trees import by_name, is_vector
from distill_jax.sampling.loading import STUDENTS, find_final, load, packaged
from tests.toys import ROOT

MAX_BYTES = 3_000_000


def row(name, who, w, num_steps):
    """Returns a row of the report of a student."""
    rows = json.loads((STUDENTS / name / "report.json").read_text())["rows"]
    (found,) = (
        row for row in rows if (row["sampler"], row["w"], row["num_steps"]) == (who, w, num_steps)
    )
    return found


def test_the_digits_student_draws_the_pictures_of_its_teacher_as_its_report_says():
    student = load("digits")
    teacher = load(compare.root(student).directory)
    assert teacher.directory == load("digits_teacher").directory
    x, y = (np.asarray(network.sample(0, 100, w=1.0)) for network in (student, teacher))
    l2 = np.sqrt(np.mean((x - y) ** 2))
    np.testing.assert_allclose(l2, row("digits", "student", 1.0, 1)["l2"], rtol=0.15)


def test_the_shapes_student_draws_what_its_prompts_say_as_its_report_says():
    student, prompts = load("shapes"), [scene.caption for scene in seen()[::7]]
    x = to_uint8(np.asarray(student.sample(0, len(prompts), prompts, 2.0)))
    right = scenes.read(x, [scenes.parse(prompt) for prompt in prompts]).all.mean()
    assert right == pytest.approx(row("shapes", "student", 2.0, 1)["all"], abs=0.04)


def test_packaged_networks_are_small_and_their_kernels_are_of_half_precision():
    assert set(packaged()) == {"digits", "digits_teacher", "shapes", "shapes_teacher"}
    for name in packaged():
        files = filter(pathlib.Path.is_file, pathlib.Path(find_final(name)).rglob("*"))
        assert sum(file.stat().st_size for file in files) <= MAX_BYTES
        leaves = by_name(load(name).params).items()
        dtypes = {leaf.dtype for path, leaf in leaves if not is_vector(path, leaf)}
        assert dtypes == {np.dtype("float16")}


def test_a_directory_does_not_change_what_a_name_means(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.symlink(ROOT / "tests" / "sampling" / "first_student", "digits")
    assert find_final("digits").parent.parent == STUDENTS / "digits"
    said = "digits is the network of this package; the directory is ./digits"
    assert said in capsys.readouterr().out
    assert find_final("./digits") == find_final(epath.Path("digits")) == tmp_path / "digits/final"


def test_an_unknown_name_is_a_message_with_the_known_ones():
    expected = "networks of this package: digits, digits_teacher, shapes, shapes_teacher$"
    with pytest.raises(FileNotFoundError, match=expected):
        load("digit")
