"""Tests of the sample command's sets of images: stopped and resumed, and drawn by two processes."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from benchmarks.kill import free_port
from distill_jax.diffusion.pixels import to_uint8
from distill_jax.evaluation import image_files
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


def test_another_ending_of_a_file_is_refused(chain, tmp_path):
    out = f"--out={tmp_path / 'x.jpg'}"
    code, _, stderr = forks.run("distill_jax.sample", f"--student={chain}", out)
    assert code == 1
    assert "ends in neither .png, .npy nor .npz; a folder's name ends in /" in stderr
