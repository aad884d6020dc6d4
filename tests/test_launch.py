"""The scripts of launch/ and .ci/: they parse, and say what is wrong."""

import os
import subprocess

import pytest

from tests.toys import ROOT

SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), ROOT / ".ci" / "run"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("name", ["launch/local.sh", "launch/test.sh", ".ci/run"])
def test_a_command_may_be_executed(name):
    assert os.access(ROOT / name, os.X_OK)


def test_without_a_python_that_is_new_enough_there_is_one_message(tmp_path):
    (tmp_path / "launch").mkdir()
    for name in ("local.sh", "environment.sh"):
        (tmp_path / "launch" / name).write_text((ROOT / "launch" / name).read_text())
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": ""}
    shadow = tmp_path / "bin"
    shadow.mkdir()
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        (shadow / name).write_text("#!/bin/sh\nexit 1\n")
        (shadow / name).chmod(0o755)
    environment["PATH"] = f"{shadow}:{environment['PATH']}"
    command = ["bash", str(tmp_path / "launch" / "local.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "error: no Python 3.11 or newer" in done.stderr


def test_every_command_of_the_readme_names_files_that_exist():
    text = (ROOT / "README.md").read_text()
    for word in text.replace("`", " ").split():
        if word.startswith(("launch/", "--config=configs/", "configs/", "docs/", "benchmarks/")):
            path = word.removeprefix("--config=").partition(":")[0].rstrip(".,;)")
            assert (ROOT / path).exists(), path
