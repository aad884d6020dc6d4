"""Tests of the sample command's sets of images: stopped and resumed, and drawn by two processes."""

import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from benchmarks.kill import free_port
from distill_jax.diffusion.noise import noise_of
from distill_jax.diffusion.pixels import to_uint8
from distill_jax.evaluation import image_files
from distill_jax.sampling.loading import load
from distill_jax.sampling.steps import predictions
from tests import forks
from tests.toys import ROOT

COMMAND = [sys.executable, "-m", "distill_jax.sample"]


@pytest.fixture(scope="module")
def flags(chain):
    return [f"--student={chain}", "--num=20000", "--w=1", "--seed=5"]


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    """Returns the .npz of one undisturbed process."""
    out = tmp_path_factory.mktemp("whole") / "x.npz"
    code, stdout, stderr = forks.run("distill_jax.sample", *flags, f"--out={out}")
    assert code == 0, stderr
    assert f"20000 images, 1 network call each, by s07_n0001: {out}" in stdout
    return out


def test_samples_are_rounded_to_the_nearest_grey_level(flags, whole, tmp_path):
    out = tmp_path / "x.npy"
    code, _, stderr = forks.run("distill_jax.sample", *flags, f"--out={out}")
    assert code == 0, stderr
    with np.load(whole) as arrays:
        np.testing.assert_array_equal(arrays["arr_0"][..., :1], to_uint8(np.load(out)))
        np.testing.assert_array_equal(arrays["arr_1"], np.arange(20000) % 10)
        assert '"seed": 5' in str(arrays["made"])


def test_a_killed_command_leaves_no_file_and_goes_on_to_the_same_bytes(flags, whole, tmp_path):
    out, part = tmp_path / "x.npz", tmp_path / "x.npz.partial" / "pixels"
    command = [*COMMAND, *flags, f"--out={out}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while not (part.exists() and part.stat().st_size):
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert part.exists()
    assert not out.exists()
    code, _, stderr = forks.run("distill_jax.sample", *flags, f"--out={out}")
    assert code == 0, stderr
    assert out.read_bytes() == whole.read_bytes()


def test_two_processes_of_two_devices_draw_the_images_of_one(flags, whole, tmp_path):
    out = tmp_path / "folder"
    command = [*COMMAND, *flags, "--num=1500", f"--out={out}", "--num_processes=2"]
    command += [f"--coordinator=localhost:{free_port()}"]
    environment, processes = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}, []
    for index in range(2):
        mine = {"cwd": ROOT, "env": environment, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([*command, f"--process_id={index}"], **mine))
    for process in processes:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    assert len(list(out.glob("*.png"))) == 1500
    found = np.concatenate(list(image_files.read(epath.Path(out)).batches())).astype(int)
    with np.load(whole) as arrays:
        differences = np.abs(found - arrays["arr_0"][:1500])
    assert differences.max() <= 1  # Sums on other devices round differently.
    assert np.mean(differences > 0) < 1e-3


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (
            ["--out=x.tif"],
            "ends in none of .png, .jpg, .jpeg, .webp, .gif, .npy and .npz; a f",
        ),
        (["--out=x.npz", "--captions"], "--strip and --captions are for pictures"),
        (["--out=x.gif", "--strip"], "--strip shows all steps in one picture"),
        (
            ["--out=x.png", "--strip", "--variance=1"],
            "the steps of a strip or .gif are",
        ),
    ],
)
def test_flags_that_make_no_picture_are_refused(chain, flags, text):
    code, _, stderr = forks.run("distill_jax.sample", f"--student={chain}", *flags)
    assert code == 1
    assert text in stderr and "Traceback" not in stderr


def test_labels_are_taken_in_turn_and_written_below_their_images(chain, tmp_path):
    given = [f"--student={chain}", "--num=5", "--w=1", "--label=3", "--label=8"]
    sizes = []
    for name, flags in (("x.npy", []), ("x.jpg", []), ("y.png", ["--captions", "--side=60"])):
        out = f"--out={tmp_path / name}"
        code, _, stderr = forks.run("distill_jax.sample", *given, *flags, out)
        assert code == 0, stderr
        if name != "x.npy":
            with Image.open(tmp_path / name) as picture:
                sizes.append(picture.size)
    assert sizes[0] == (3 * 50, 2 * 50)
    assert sizes[1][0] == 3 * 58 and sizes[1][1] > 2 * 58
    own = load(chain).sample(0, 5, np.array([3, 8, 3, 8, 3]), 1.0)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), own)


def test_a_strip_and_a_moving_picture_show_every_step(chain, tmp_path):
    stage = next(path for path in sorted(chain.iterdir()) if path.name.endswith("n0004"))
    given = [f"--student={stage}", "--num=2", "--w=1"]
    for name, flags in (("x.gif", []), ("x.png", ["--strip"])):
        out = f"--out={tmp_path / name}"
        code, _, stderr = forks.run("distill_jax.sample", *given, *flags, out)
        assert code == 0, stderr
    with Image.open(tmp_path / "x.gif") as moving, Image.open(tmp_path / "x.png") as strip:
        assert moving.n_frames == 4
        assert strip.width == 8 * 50  # The teacher's 64 steps, eight of them.


def test_the_steps_end_in_the_sample_and_each_is_a_prediction(chain):
    stage = next(path for path in sorted(chain.iterdir()) if path.name.endswith("n0004"))
    student = load(stage)
    steps = predictions(student, 3, 2, np.array([1, 2]), 1.0)
    assert [t for t, _ in steps] == [1.0, 0.75, 0.5, 0.25]
    own = student.sample(3, 2, np.array([1, 2]), 1.0)
    np.testing.assert_allclose(steps[-1][1], own, atol=1e-5)
    k_z, _ = jax.random.split(jax.random.key(3))
    z = noise_of(k_z, 0, 2, student.shape)
    cond = {"label": jnp.array([1, 2]), "w": jnp.ones(2)}
    first = np.clip(student.denoise(z, jnp.ones(2), cond).x, -1, 1)
    np.testing.assert_allclose(steps[0][1], first, atol=1e-5)
