"""Tests that any config is a plan or one message; see tests/fuzz.py."""

import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from distill_jax.run import plan
from tests import fuzz
from tests.toys import ROOT


def test_a_mutated_config_is_a_plan_or_one_message(request):
    """In a process without the type checker of the tests, for which 0 is no float."""
    count = 2500 if request.config.getoption("--all") else 300
    command = [sys.executable, "-m", "tests.fuzz", str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    accepted = int(re.search(r" (\d+) plans, 0 wrong", done.stdout)[1])
    assert count // 150 < accepted < count // 5  # Some values are good ones.


# Datasets that need more than a config, and what their plan lacks.
LACKING = {
    "captioned_tfds": "dataset 'coco_captions' is not prepared in",
    "prompts": "method 'diffusion' trains on images, and the data have prompts only",
}


def test_every_entry_of_a_table_has_a_config_that_is_planned(tmp_path):
    for i in range(30):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"picture {i}")
    for config in fuzz.small(str(tmp_path)):
        if message := LACKING.get(config.data.name):
            with pytest.raises(ValueError, match=message):
                plan.make(config, tmp_path)
        else:
            plan.make(config, tmp_path)


def slow(spec):
    """A network of a user that takes long."""
    while True:
        pass


@pytest.mark.parametrize(
    ("name", "kind"),
    [("builtins:int", "traceback"), ("tests.test_fuzz:slow", "hang")],
)
def test_tracebacks_and_hangs_are_found(name, kind, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.5)
    case = fuzz.Case(fuzz.smallest(), ((("model",), {"name": name}),))
    assert fuzz.outcome(case).kind == kind
