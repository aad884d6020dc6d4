"""Tests of the lock of a workdir: one run writes there, and knows when it no longer may."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import fsspec
import pytest
from etils import epath

from distill_jax.run import lock, pipeline, plan
from distill_jax.runtime.config_file import load_file
from tests.runtime.test_files import Bucket
from tests.toys import ROOT, TINY_CHAIN

PROGRAM = """
import sys, time
from etils import epath
from distill_jax.run.lock import hold

with hold(epath.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def holder(workdir):
    """Another process that holds a workdir."""
    command = [sys.executable, "-c", PROGRAM, str(workdir)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path / "run")


@pytest.fixture
def bucket():
    for protocol in Bucket.protocol:
        fsspec.register_implementation(protocol, Bucket, clobber=True)
    yield epath.Path("gs://bucket/run")
    Bucket.store.clear()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, "SILENCE", 0.5)
    monkeypatch.setattr(lock, "BEAT", 0.1)


def test_a_living_process_keeps_the_workdir_and_a_killed_one_loses_it(workdir):
    with holder(workdir) as process:
        said = rf"is in use: the run of process {process.pid} on .* since 20.*; stop that run"
        for number in (signal.SIGCONT, signal.SIGSTOP):  # A process that stands still lives.
            process.send_signal(number)
            for _ in range(20):
                with pytest.raises(ValueError, match=said), lock.hold(workdir):
                    pass
        process.kill()
        process.wait()
        assert (workdir / "lock.json").exists()
        with lock.hold(workdir) as held:
            held.check()
    assert not (workdir / "lock.json").exists()


def test_a_second_run_is_refused_before_it_writes_anything(workdir, tmp_path):
    (tmp_path / "chain.py").write_text(TINY_CHAIN)
    run = plan.make(load_file(tmp_path / "chain.py").get_config(), workdir)
    with holder(workdir), pytest.raises(ValueError, match="is in use"):
        pipeline.run(run, lambda: False, force=True)
    assert [path.name for path in workdir.iterdir()] == ["lock.json"]


def test_on_a_disk_without_locks_the_holder_is_the_process_that_the_file_names(
    workdir, monkeypatch
):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "no locks available")

    with holder(workdir) as process:
        monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(ValueError, match=f"process {process.pid}"), lock.hold(workdir):
            pass
        process.kill()
        process.wait()
        with lock.hold(workdir) as held:
            held.check()
            with pytest.raises(ValueError, match="is in use"):
                lock.Lock(workdir).take()


def test_of_many_that_begin_at_once_one_gets_the_workdir(workdir):
    locks, won, refused = [lock.Lock(workdir) for _ in range(20)], [], []

    def take(each):
        try:
            each.take()
            won.append(each)
        except ValueError:
            refused.append(each)

    threads = [threading.Thread(target=take, args=(each,)) for each in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 19)
    won[0].free()


def written_elsewhere(path, beat):
    """Writes the file of a run on another machine."""
    mine = json.loads(lock.Lock(path.parent)._content())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**mine, "host": "node7", "boot": "another", "beat": int(beat)}))


@pytest.mark.parametrize("place", ["workdir", "bucket"])
def test_a_run_on_another_machine_is_dead_after_a_silence_and_else_alive(place, request, capsys):
    workdir = request.getfixturevalue(place)
    path = workdir / "lock.json"
    written_elsewhere(path, time.time())
    with lock.hold(workdir) as held:
        held.check()
    assert "on node7" in capsys.readouterr().out
    written_elsewhere(path, time.time() - 2 * lock.ABANDONED)
    with lock.hold(workdir) as held:
        held.check()
    assert capsys.readouterr().out == ""  # It is too old to wait for.
    written_elsewhere(path, time.time())
    beat = threading.Timer(0.2, written_elsewhere, (path, time.time() + 5))
    beat.start()
    with pytest.raises(ValueError, match="on node7 .* writes there"), lock.hold(workdir):
        pass
    beat.join()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff\xfe", b"\0" * 500, b"[" * 10**5, b'{"a":1}']
)
def test_a_damaged_lock_is_taken(workdir, content):
    workdir.mkdir()
    (workdir / "lock.json").write_bytes(content)
    with lock.hold(workdir) as held:
        held.check()


def test_a_nested_call_has_the_same_lock(workdir):
    with lock.hold(workdir) as outer:
        with lock.hold(workdir) as inner:
            assert inner is outer
        outer.check()


def test_a_bucket_is_held_by_one_run_that_notices_when_another_takes_it(bucket):
    with lock.hold(bucket) as held:
        first = (bucket / "lock.json").read_text()
        other = lock.Lock(bucket)
        with pytest.raises(ValueError, match=f"process {os.getpid()} "):
            other.take()
        time.sleep(1.5)
        assert json.loads((bucket / "lock.json").read_text())["beat"] > json.loads(first)["beat"]
        held.check()
        written_elsewhere(bucket / "lock.json", time.time())
        with pytest.raises(ValueError, match="on node7 .* took it over"):
            held.check()
    assert (bucket / "lock.json").exists()  # It is the other's.


def rename(workdir):
    workdir.rename(workdir.parent / "moved")


def remove(workdir):
    shutil.rmtree(workdir)


def make_again(workdir):
    """Another run finds the workdir renamed, and begins at its old path."""
    rename(workdir)
    workdir.mkdir()
    written_elsewhere(workdir / "lock.json", time.time())


@pytest.mark.parametrize(
    ("harm", "said"),
    [(rename, "renamed or removed"), (remove, "renamed or removed"), (make_again, "on node7")],
)
def test_a_run_whose_workdir_vanishes_ends_with_a_message_and_writes_nothing_there(
    workdir, tmp_path, harm, said
):
    (tmp_path / "chain.py").write_text(TINY_CHAIN)
    run = plan.make(load_file(tmp_path / "chain.py").get_config(), workdir)
    polls = iter(range(100))

    def poll():
        if next(polls) == 2:
            time.sleep(1)  # The first state is written in the background.
            harm(workdir)
        return False

    with pytest.raises(ValueError, match=said):
        pipeline.run(run, poll)
    left = [path.name for path in workdir.iterdir()] if workdir.exists() else []
    assert left == (["lock.json"] if harm is make_again else [])
    if harm is rename:  # Under its new name it goes on, as the lock of a dead run is free.
        moved = plan.make(run.config, tmp_path / "moved")
        assert pipeline.run(moved, lambda: False)


def test_what_killed_writes_left_is_removed_at_the_next_start(workdir):
    (workdir / "s00" / "final.partial" / "params").mkdir(parents=True)
    (workdir / "config.json.partial").write_text("{")
    (workdir / "s00" / "scalars.jsonl").write_text("")
    with lock.hold(workdir):
        left = sorted(path.name for path in pathlib.Path(workdir).rglob("*"))
    assert left == ["lock.json", "s00", "scalars.jsonl"]
