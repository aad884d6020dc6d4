import json
import os
import subprocess
import sys

import pytest

from distill_jax.runtime import record
from tests.toys import ROOT


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Returns a function that runs git in a new repository of one commit with commit.txt."""
    monkeypatch.delenv("DISTILL_JAX_COMMIT", raising=False)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)

    def git(*words):
        identity = ["-c", "user.name=n", "-c", "user.email=e@host"]
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    (tmp_path / "launch").mkdir()
    for name in (".gitattributes", "launch/commit.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message=one")
    return git


def test_the_commit_of_a_checkout_says_whether_files_differ_from_it(checkout, tmp_path):
    head = checkout("rev-parse", "HEAD")
    assert record.commit(tmp_path) == head
    (tmp_path / "new.py").touch()
    record.commit.cache_clear()
    assert record.commit(tmp_path) == f"{head} + changes"


def test_an_archive_knows_its_commit_and_a_bare_copy_none(checkout, tmp_path):
    head = checkout("rev-parse", "HEAD")
    out = tmp_path / "out"
    out.mkdir()
    archive = tmp_path / "archive.tar"
    checkout("archive", f"--output={archive}", "HEAD")
    subprocess.run(["tar", "-xf", str(archive), "-C", str(out)], check=True)
    assert record.commit(out) == f"{head} (an archive, perhaps with changes)"
    (out / "launch" / "commit.txt").write_text((ROOT / "launch" / "commit.txt").read_text())
    record.commit.cache_clear()
    assert record.commit(out) == "unknown"


def test_the_commit_that_a_launcher_sent_has_precedence(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_JAX_COMMIT", "1" * 40 + " + changes")
    record.commit.cache_clear()
    assert record.commit(tmp_path) == "1" * 40 + " + changes"
    record.commit.cache_clear()


def test_the_record_of_a_start_has_the_command_the_machine_and_every_version():
    program = (
        "import json; from distill_jax.runtime import record; print(json.dumps(record.start()))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["command"].endswith(f"-c '{program}'")
    assert found["devices"].endswith("x cpu") and found["processes"] == 1
    assert found["host"] and found["time"].endswith("+00:00")
    assert found["versions"].keys() >= {"jax", "flax", "orbax-checkpoint"}
    assert found["constraints"] == record.lock() != "none"
