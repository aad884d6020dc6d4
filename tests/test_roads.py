"""Tests of the roads from a file in a published format to a student, report and picture.

With --all every road runs, otherwise all but those in DEAR: cifar10_edm_dmd2 has their method, and
imagenet64_edm_sid and imagenet64_adm_guided their files.
"""

import functools
import json
import re
import shlex

import pytest
from PIL import Image

from tests import forks
from tests.roads import write
from tests.test_configs import ROADS

DEAR = ("imagenet64_adm_dmd2", "imagenet64_edm_dmd2")  # 44 CPU-seconds each, others 12 to 27.


def pytest_generate_tests(metafunc):
    if "road" in metafunc.fixturenames:
        every = metafunc.config.getoption("all")
        metafunc.parametrize("road", [name for name in ROADS if every or name not in DEAR])


def done(module, *flags):
    """Runs a command, and returns what it printed."""
    code, stdout, stderr = forks.run(f"distill_jax.{module}", *flags)
    assert code == 0, stderr
    return stdout


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Returns a function from a kind of network to its directory, imported once by the command."""
    folder = tmp_path_factory.mktemp("teachers")

    @functools.cache
    def imported(source):
        out = folder / source / "teacher"
        text = done("teachers", *write(source, folder / source).words(out))
        assert f"next: python -m distill_jax.teachers check {out}" in text
        return out

    return imported


def test_a_road_leads_from_a_file_to_a_student_a_report_and_a_picture(road, teachers, tmp_path):
    teacher, workdir = teachers(ROADS[road]), tmp_path / "run"
    flags = f"--config=configs/{road}.py:smoke", f"--config.teacher={teacher}"
    first = road == next(iter(ROADS))  # What works of it does so of the others.
    rehearse = () if first else ("--norehearse",)  # It traces what then runs, and costs a tenth.
    text = done("main", *flags, f"--workdir={workdir}", *rehearse)
    assert f"from {teacher}: " in text
    last = sorted(path for path in workdir.glob("s*_*") if path.is_dir())[-1]
    (command,) = re.findall(r"python -m distill_jax.(sample .*)", text)
    module, *words = shlex.split(command)
    assert f"--student={last}" in words
    rows = json.loads((workdir / "report.json").read_text())["rows"]
    assert {row["stage"] for row in rows} >= {last.name}
    with Image.open(last / "grid.png") as image:
        assert min(image.size) > 8
    if first:
        done(module, *words, f"--out={tmp_path / 'x.png'}")
        assert (tmp_path / "x.png").exists()
