"""Tests of benchmarks/beside_torch.py: its ratios, and the networks of both libraries."""

import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import beside_jax, beside_torch
from tests.toys import ROOT

SHORT = ["forward", "training update", "PD update", "1-step sampling"]


class Side:
    """A side whose calls take given seconds, and whose output is one number or none."""

    def __init__(self, seconds, output):
        self.seconds, self.output = iter(seconds), output

    def begin(self, name, path):
        if self.output is not None:
            np.save(path, self.output)

    def answer(self):
        return [0.0, self.output is not None]

    def time(self, name):
        return next(self.seconds)


def test_a_ratio_is_the_median_over_rounds_of_pytorchs_seconds_over_ours():
    ours, theirs = Side([1.0, 2.0, 4.0], np.float32(2.2)), Side([3.0, 8.0, 8.0], np.float32(2.0))
    cells = beside_torch.row("forward", [ours, theirs], 3, 100.0)
    assert cells == ["forward", "2", "8", "3.00 (2.00 to 4.00)", "1e-01"]


def test_no_round_begins_after_the_seconds_and_updates_have_no_output():
    sides = [Side([1.0, 1.0], None), Side([2.0, 2.0], None), Side([4.0, 4.0], None)]
    cells = beside_torch.row("PD update", sides, 5, 14.0)
    assert cells[1:] == ["1", "2", "4", "4.00 (4.00 to 4.00)", "2.00 (2.00 to 2.00)", "-"]


def test_the_imported_unet_has_the_layout_of_edms_and_both_sides_the_same_weights():
    run, weights = beside_jax.planned("ddpmpp", "smoke", 2)
    assert run.config.model.name == "song_unet" and run.config.model.attention == (4,)
    assert [stage.spec.method.name for stage in run.stages] == ["diffusion", "progressive"]
    kernel = beside_jax.released("smoke")["model.enc.8x8_conv.weight"]
    np.testing.assert_array_equal(weights["unet"]["input"]["kernel"], kernel.transpose(2, 3, 1, 0))


@pytest.mark.parametrize("network", ["ddpmpp", "dit", "layers"])
def test_both_libraries_compute_the_same_and_every_workload_has_a_row(network):
    pytest.importorskip("torch")
    command = [sys.executable, "benchmarks/beside_torch.py", f"--network={network}"]
    only = "" if network == "layers" else ",".join(SHORT)
    command += ["--size=smoke", "--rounds=1", "--batch=2", f"--only={only}"]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, _, *rows = (line.strip("| ").split(" | ") for line in done.stdout.splitlines())
    assert network == "layers" or [row[0] for row in rows] == SHORT
    assert len(rows) == (8 if network == "layers" else 4)
    assert all(float(row[3].split()[0]) > 0 for row in rows)
    assert all(float(row[-1]) < 1e-4 for row in rows if "update" not in row[0])
