"""Tests of the generated page docs/reference.md: it is that of the code, and nothing is missing."""

import os
import re
import subprocess
import sys

import pytest

from distill_jax.__main__ import COMMANDS
from distill_jax.config import base, stage
from distill_jax.data import DATASETS
from distill_jax.diffusion.schedule import SCHEDULES
from distill_jax.diffusion.trained import SAMPLERS
from distill_jax.methods import METHODS
from distill_jax.models import NETWORKS
from tests.toys import ROOT

PAGE = (ROOT / "docs" / "reference.md").read_text()
HEADS = {
    "Method": METHODS,
    "Network": NETWORKS,
    "Schedule": SCHEDULES,
    "Sampler": SAMPLERS,
    "Dataset": DATASETS,
    "Command": COMMANDS,
}


def section(title):
    """Returns the text below a heading, up to the next of its level or above."""
    level = len(title) - len(title.lstrip("#"))
    start = PAGE.index(f"\n{title}\n") + len(title) + 2
    return re.split(rf"\n#{{1,{level}}} ", PAGE[start:])[0]


def test_the_page_is_what_its_program_writes_from_this_code(tmp_path):
    path = tmp_path / "reference.md"
    command = [sys.executable, str(ROOT / "benchmarks" / "reference.py"), f"--out={path}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    assert path.read_text() == PAGE, "write it again: python benchmarks/reference.py"


def test_every_key_of_a_config_and_of_a_stage_has_an_entry():
    text = section("## Config")
    for key, value in base().to_dict().items():
        assert f"| `config.{key}" in text
        for inner in value if f"| `config.{key}." in text else ():
            assert f"| `config.{key}.{inner}` |" in text
    for key in stage("a", "diffusion", steps=1, learning_rate=1.0):
        assert f"| `{key}` |" in section("## Stages")


@pytest.mark.parametrize("kind", HEADS)
def test_every_entry_of_a_table_has_a_heading(kind):
    found = re.findall(rf"^### {kind} (\w+)$", PAGE, re.MULTILINE)
    assert found == list(HEADS[kind])


def test_no_entry_lacks_its_meaning():
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert len(rows) > 500
    assert [row for row in rows if row.endswith("|  |")] == []


def test_options_have_the_default_and_the_values_that_a_config_takes():
    assert "| `width` | `384` | a multiple of 4 from 4 to 65,536 |" in section("### Network dit")
    assert "| `alpha` | `1.0` | a number from 0 to 1.5 |" in section("### Method sid_lsg")
    assert "| `path` | needed | a string |" in section("### Dataset folder")
    assert "`--workdir`" in section("### Command sweep")
