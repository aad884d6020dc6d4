"""Tests of the commands: their output, their files, and the messages of user errors."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import requests
from PIL import Image

from distill_jax.run import validation
from distill_jax.runtime import app
from distill_jax.sampling.loading import find_final
from tests import forks
from tests.toys import ROOT, TINY_CHAIN

CONFIG = "--config=configs/digits_guided.py:smoke"


def run(module, *flags, **options):
    """Runs a command, and returns its exit code, standard output and standard error."""
    if not options:
        return forks.run(f"distill_jax.{module}", *flags)
    command = [sys.executable, "-m", f"distill_jax.{module}", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
    return done.returncode, done.stdout, done.stderr


def one_message(code, stdout, stderr):
    """Returns the single message of a user error; fails for a traceback or a success."""
    assert code == 1
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, stderr
    return stderr[stderr.index("error: ") :]


def test_sample_writes_a_grid(chain, tmp_path):
    out = tmp_path / "grid.png"
    code, stdout, stderr = run("sample", f"--student={chain}", "--num=20", "--w=2", f"--out={out}")
    assert code == 0, stderr
    assert "20 images, 1 network call each, by s07_n0001" in stdout
    with Image.open(out) as image:
        assert image.size == (500, 100)


def test_sample_writes_an_array(chain, tmp_path):
    out = tmp_path / "x.npy"
    flags = (f"--student={chain / 's05_n0004'}", "--num=3", "--label=7", f"--out={out}")
    code, _, stderr = run("sample", *flags)
    assert code == 0, stderr
    assert np.load(out).shape == (3, 8, 8, 1)


def test_evaluate_prints_the_rows_beside_the_teacher(chain, tmp_path):
    out = tmp_path / "rows.json"
    flags = (f"--student={chain}", "--num=40", "--w=0,1", f"--out={out}")
    code, stdout, stderr = run("evaluate", *flags)
    assert code == 0, stderr
    assert "| student | s07_n0001   | 1         | 1 |" in stdout
    assert "FD-digits-to-teacher" in stdout
    assert re.search(
        r"Floor of FD-digits: 0\.\d+ between two halves of the training images", stdout
    )
    assert out.exists()


def test_a_plan_for_other_devices_starts_nothing(tmp_path):
    flags = (f"--workdir={tmp_path / 'run'}", "--plan_for=8xh100", "--config.mesh.fsdp=4")
    code, stdout, _ = run("main", CONFIG, *flags)
    assert code == 0
    assert "8 planned device(s), mesh: data 2, fsdp 4, tensor 1" in stdout
    assert "hours on 8 h100" in stdout
    assert not (tmp_path / "run").exists()


def test_plan_prints_the_stages_and_starts_nothing(tmp_path):
    code, stdout, _ = run("main", CONFIG, f"--workdir={tmp_path / 'run'}", "--plan")
    assert code == 0
    assert "s07_n0001" in stdout
    assert "FLOP per image" in stdout
    assert not (tmp_path / "run").exists()


MISTAKES = {
    "misspelt key": ("main", (CONFIG, "--config.batch_sise=8"), "did you mean 'batch_size'"),
    "value of another type": ("main", (CONFIG, "--config.batch_size=many"), "batch_size"),
    "size that the config does not have": (
        "main",
        ("--config=configs/digits_guided.py:smok",),
        "error: unknown size 'smok' of the config; known: full, smoke",
    ),
    "config that does not exist": ("main", ("--config=configs/digit.py",), "configs/digit.py"),
    "batch that devices do not divide": (
        "main",
        (CONFIG, "--config.batch_size=0"),
        "batch_size is 0",
    ),
    "plan of another kind": ("main", (CONFIG, "--plan=nonsense"), "<true|false|compile>"),
    "programs for devices that are elsewhere": (
        "main",
        (CONFIG, "--plan=compile", "--plan_for=8xh100"),
        "--plan=compile is for the 1 device(s) here",
    ),
    "workdir that is a file": ("main", (CONFIG, "--workdir=README.md"), "README.md"),
    "workdir that cannot be written": ("main", (CONFIG, "--workdir=/proc/nowhere/run"), "/proc"),
    "student that does not exist": (
        "sample",
        ("--student=/nowhere",),
        "/nowhere has no finished network, because it does not exist",
    ),
    "stage that does not exist": (
        "sample",
        ("--student=distill_jax/students/digits/s05_n0004",),
        "finished stages beside it: s00_teacher, s07_n0001",
    ),
    "picture of an unknown kind": (
        "sample",
        ("--student=x", "--out=a.tif"),
        "ends in none of .png, .jpg, .jpeg, .webp, .gif, .npy and .npz",
    ),
    "student for evaluation": ("evaluate", ("--student=/nowhere",), "has no finished network"),
    "length of an average beyond all": (
        "posthoc",
        ("--stage=/nowhere", "--sigma_rel=0.3", "--out=/nowhere/long"),
        "sigma_rel is 0.3; expected a number from 0.001 to 0.2886",
    ),
    "average that has the name of a stage": (
        "posthoc",
        ("--stage=/nowhere", "--sigma_rel=0.1", "--out=/nowhere/s00_long"),
        "--out=/nowhere/s00_long has the name of a stage; choose one without s00_",
    ),
    "average of a stage without snapshots": (
        "posthoc",
        ("--stage=tests/sampling/first_student", "--sigma_rel=0.1", "--out=/nowhere/long"),
        "has no snapshots of averages; train the stage with posthoc=(0.05, 0.1)",
    ),
    "mirror of no workdir": (
        "mirror",
        ("--workdir=/nowhere", "--to=mlflow"),
        "/nowhere has no config.json; expected the workdir of a run",
    ),
    "strengths that are no numbers": ("evaluate", ("--student=x", "--w=a,b"), "no list of numbers"),
}


def raised(action):
    try:
        action()
    except Exception as error:
        return error


def test_only_errors_that_a_user_can_fix_are_messages():
    assert app.is_message(raised(lambda: find_final("/nowhere")))
    assert app.is_message(OSError(28, "No space left on device"))
    for lost in (ConnectionResetError(), TimeoutError(), requests.ConnectionError()):
        assert not app.is_message(lost)
    # Python raises this error in a line of the package, so its text is no message for the user.
    assert not app.is_message(raised(lambda: validation.check_microbatches(8, 0, 1)))


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_message_without_traceback_and_exit_code_1(kind):
    module, flags, message = MISTAKES[kind]
    assert message in one_message(*run(module, *flags))


def test_an_unknown_label_is_one_message(chain, tmp_path):
    result = run("sample", f"--student={chain}", "--label=10", f"--out={tmp_path / 'x.png'}")
    assert "trained on 0 to 9" in one_message(*result)
    assert not (tmp_path / "x.png").exists()


def test_a_w_outside_the_students_range_is_one_message(chain):
    result = run("evaluate", f"--student={chain}", "--w=1,9")
    assert "--w=9, and this student takes w from 0 to 4" in one_message(*result)


def test_a_full_disk_is_one_message_and_the_run_goes_on_from_there(tmp_path):
    # Files of at most 40 kB stand in for a disk without room: the training state is larger.
    (tmp_path / "chain.py").write_text(TINY_CHAIN)
    flags = f"--config={tmp_path / 'chain.py'} --workdir={tmp_path} --config.model.width=64"
    command = f"ulimit -f 40; exec {sys.executable} -m distill_jax.main {flags}"
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(["bash", "-c", command], **options)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    # Programs that cannot be cached only cause warnings.
    messages = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, done.stderr
    assert "cannot write" in messages[0]
    assert "File too large" in messages[0]
    assert "start the same command again" in messages[0]
    assert not (tmp_path / "s00_teacher" / "final" / "manifest.json").exists()
    code, _, stderr = run("main", *flags.split())
    assert code == 0, stderr


def test_help_starts_no_accelerator():
    environment = {**os.environ, "JAX_PLATFORMS": "nonsense"}
    code, stdout, stderr = run("main", "--help", env=environment)
    assert "--workdir" in stdout, stderr
    assert code in (0, 1)  # absl's --help exits with 1.


def test_a_python_without_the_requirements_is_one_message():
    command = [sys.executable, "-S", "-m", "distill_jax.main"]  # -S hides the environment.
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "has no jax; activate the environment" in one_message(
        done.returncode, done.stdout, done.stderr
    )


HUGE = 10**11


@pytest.mark.parametrize(
    ("command", "flag", "message"),
    [
        ("sample", "--w=inf", "w is inf; expected a number from 0 to 1000"),
        ("sample", f"--num={HUGE}", "more than half of the"),
        ("sample", f"--num_steps={HUGE}", "expected a whole number to 100,000"),
        ("sample", f"--seed={2**32}", "not an integer in the range [0, 4294967295]"),
        ("sample", f"--label={HUGE**2}", "expected an integer"),
        ("sample", "--student=gs://bucket/run", 'paths gs:// need the extra "gcs"'),
        ("evaluate", "--w=nan", "w is nan; expected a number from 0 to 1000"),
        ("evaluate", "--ancestral=nan", "--ancestral=[nan]; expected numbers from 0 to 1"),
        ("evaluate", f"--num={HUGE}", "more than half of the"),
        ("evaluate", "--data=/etc", "--data=/etc is not what"),
        ("edit sdedit", "--strength=nan", "expected a number above 0 and up to 1"),
        ("edit sdedit", "--seed=-1", "not an integer in the range [0, 4294967295]"),
    ],
)
def test_a_flag_out_of_range_is_one_message(command, flag, message, tmp_path):
    name, *task = command.split()
    student = f"--student={ROOT / 'tests' / 'sampling' / 'first_student'}"
    result = run(name, *task, student, f"--out={tmp_path / 'x.npy'}", flag)
    assert message in one_message(*result)


def test_a_message_cannot_write_to_the_terminal():
    message = one_message(*run("sample", "--student=a\x1b[2J\u202eb"))
    assert r"a\x1b[2J\u202eb" in message
