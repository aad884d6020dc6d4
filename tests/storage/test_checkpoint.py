import concurrent.futures
import contextlib
import gc
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from benchmarks import corrupt
from benchmarks.kill import free_port
from distill_jax.runtime import app
from distill_jax.storage import checkpoint, checksums, writing
from distill_jax.storage.states import States
from tests import meshes
from tests.toys import ROOT

STATE = {"a": jnp.arange(3000.0), "step": jnp.asarray(5), "key": jax.random.key(3)}


def like(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def same(a, b):
    np.testing.assert_array_equal(a["a"], b["a"])
    np.testing.assert_array_equal(jax.random.key_data(a["key"]), jax.random.key_data(b["key"]))


def at(step):
    return {**STATE, "a": STATE["a"] + step, "step": jnp.asarray(step)}


@pytest.fixture
def saved(tmp_path):
    """A directory with the states of iterations 1 and 2."""
    states = States(tmp_path / "states")
    for step in (1, 2):
        states.save(step, at(step))
    states.close()
    return tmp_path / "states"


def test_the_newest_state_comes_back_bit_for_bit(saved):
    states = States(saved)
    assert states.steps() == [1, 2]
    same(states.restore(like(STATE)), at(2))


def test_without_a_state_nothing_comes_back(tmp_path):
    assert States(tmp_path / "states").restore(like(STATE)) is None


def test_only_the_newest_few_are_kept(tmp_path):
    states = States(tmp_path / "states", keep=2)
    for step in range(1, 5):
        states.save(step, at(step))
    states.close()
    assert States(tmp_path / "states").steps() == [3, 4]


def test_states_of_every_so_many_iterations_are_kept_for_good(tmp_path):
    states = States(tmp_path / "states", keep=2, keep_every=3)
    for step in range(1, 9):
        states.save(step, at(step))
    states.close()
    assert States(tmp_path / "states").steps() == [3, 6, 7, 8]


def test_deleted_are_all_states_but_those_of_every_so_many_iterations(saved):
    (saved / "3.orbax-checkpoint-tmp").mkdir()
    States.delete(saved, keep_every=2)
    assert [path.name for path in saved.iterdir()] == ["2"]
    States.delete(saved)
    States.delete(saved / "absent")
    assert not list(saved.iterdir())


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Two stages, with the states of iterations 1 and 2 and a finished network each."""
    folder = tmp_path_factory.mktemp("stages")
    for name in (corrupt.STAGE, corrupt.OTHER):
        corrupt.write_stage(folder, name)
    return folder


@pytest.mark.parametrize("case", corrupt.CASES, ids=lambda case: f"{case[0]}: {case[1]}")
def test_what_is_corrupted_is_passed_over_or_refused_and_no_file_is_lost(stages, tmp_path, case):
    _, where, harm, expected = case
    shutil.copytree(stages, tmp_path / "copy")
    happened, message = corrupt.outcome(tmp_path / "copy", where, harm)
    assert happened == expected
    assert message.count("damaged_") == {corrupt.PASSED: 1, "begins the stage again": 2}.get(
        happened, 0
    ) * (where != "states/")
    assert bool(message) == (happened in (corrupt.PASSED, corrupt.REFUSED) or "both" in where)


HARMS = {"flipped": corrupt.flip, "cut": corrupt.cut, "removed": pathlib.Path.unlink}


@pytest.mark.parametrize("harm", HARMS)
def test_harm_to_any_file_of_a_state_is_noticed_or_does_no_harm(stages, tmp_path, harm):
    names = [path.relative_to(stages) for path in (stages / corrupt.NEWEST).rglob("*")]
    harmless = set()
    for number, name in enumerate(name for name in names if (stages / name).is_file()):
        folder = tmp_path / str(number)
        shutil.copytree(stages / corrupt.STAGE / "states", folder / corrupt.STAGE / "states")
        happened, _ = corrupt.outcome(folder, "state", lambda f, n=name: HARMS[harm](f / n))
        assert happened in (corrupt.PASSED, "goes on after 2")
        if happened == "goes on after 2":
            harmless.add(name.name)
    assert number > 8
    assert harmless == {"_CHECKPOINT_METADATA", "commit_success.txt"}


def test_a_state_damaged_twice_is_set_aside_twice(saved):
    for _ in range(2):
        corrupt.flip(corrupt.biggest(saved / "2"))
        states = States(saved)
        same(states.restore(like(STATE), lambda line: None), at(1))
        states.save(2, at(2))
        states.close()
    names = sorted(path.name for path in saved.parent.glob("damaged*"))
    assert names == ["damaged_2", "damaged_2_1"]


def test_the_leftovers_of_a_killed_save_are_removed_by_the_next_one(saved):
    (saved / "3.orbax-checkpoint-tmp").mkdir()
    (saved / "3.orbax-checkpoint-tmp" / "part").write_text("x")
    states = States(saved)
    states.save(4, at(4))
    states.close()
    assert not (saved / "3.orbax-checkpoint-tmp").exists()


@pytest.fixture
def final(tmp_path):
    """A finished network of one array."""
    checkpoint.save_final(epath.Path(tmp_path / "final"), {"k": jnp.arange(2000.0)}, {"stage": "s"})
    return tmp_path / "final"


def test_a_final_network_comes_back_with_its_manifest(final):
    arrays, files = checkpoint.fingerprints(final)
    assert checkpoint.read_manifest(final) == {
        "format": checksums.FORMAT,
        "stage": "s",
        "fingerprint": files,
        "arrays": arrays,
    }
    params = checkpoint.load_params(final, {"k": jax.ShapeDtypeStruct((2000,), jnp.float32)})
    np.testing.assert_array_equal(params["k"], np.arange(2000.0))


def test_a_network_that_is_trained_again_has_the_same_fingerprint_though_its_files_differ(tmp_path):
    made = {}
    for name, values in (("one", 0.0), ("again", 0.0), ("other", 1.0)):
        params = {"a": {"k": jnp.arange(2000.0) + values}, "b": jnp.bfloat16(1)}
        checkpoint.save_final(tmp_path / name, params, {"stage": "s"})
        made[name] = checkpoint.fingerprints(epath.Path(tmp_path / name))
    assert made["one"][0] == made["again"][0] == checkpoint.fingerprint(tmp_path / "one")
    assert made["one"][1] != made["again"][1]
    assert made["one"][0] != made["other"][0]


def test_a_network_of_an_older_version_is_known_by_its_files(final):
    content = checkpoint.read_manifest(final)
    del content["arrays"]
    (final / "manifest.json").write_text(json.dumps(content))
    assert checkpoint.fingerprints(final) == (content["fingerprint"],)


def test_a_fake_network_comes_back_beside_the_finished_one(tmp_path):
    final, away = epath.Path(tmp_path / "final"), tmp_path / "manifest.json"
    params, fake = ({"k": jnp.arange(2000.0) + i} for i in range(2))
    checkpoint.save_final(final, params, {"stage": "s"}, fake)
    (final / "manifest.json").rename(away)  # As of a run that is killed before it writes one.
    checkpoint.save_final(final, params, {"stage": "s"}, fake)
    for name, tree in (("params", params), ("fake", fake)):
        found = checkpoint.load_params(final, like(params), name)
        np.testing.assert_array_equal(found["k"], tree["k"])
    shutil.rmtree(final / "fake")
    shutil.copytree(final / "params", final / "fake")
    with pytest.raises(ValueError, match="fake is not what .* is about"):
        checkpoint.load_params(final, like(params), "fake")


def test_a_finished_network_stays_as_it_is_when_it_is_finished_again(final):
    before = checkpoint.read_manifest(final)
    with pytest.raises(FileExistsError, match="is finished already; it stays as it is"):
        checkpoint.save_final(final, {"k": jnp.zeros(2000)}, {"stage": "s"})
    assert checkpoint.read_manifest(final) == before
    params = checkpoint.load_params(final, {"k": jax.ShapeDtypeStruct((2000,), jnp.float32)})
    np.testing.assert_array_equal(params["k"], np.arange(2000.0))


def test_what_a_killed_write_of_a_network_left_is_removed_by_the_next_one(tmp_path):
    (tmp_path / "final.partial" / "params").mkdir(parents=True)
    (tmp_path / "final.partial" / "params" / "part").write_text("x")
    save_final_to(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_metrics_can_be_put_into_a_manifest_later(final):
    checkpoint.record(epath.Path(final), {"rows": [1]})
    assert checkpoint.read_manifest(final)["metrics"] == {"rows": [1]}
    assert checkpoint.read_manifest(final)["stage"] == "s"


def test_a_manifest_changed_by_hand_is_read_without_its_checksum(final):
    path = final / "manifest.json"
    content = {**json.loads(path.read_text()), "stage": "mine"}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="changed it by hand"):
        checkpoint.read_manifest(final)
    content.pop("checksum")
    path.write_text(json.dumps(content))
    assert checkpoint.read_manifest(final)["stage"] == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a finished network"),
        ("{", "is no readable JSON .*; move"),
        ("{}", "no format number"),
        (json.dumps({"format": checksums.FORMAT + 1}), "install a newer one"),
    ],
)
def test_a_manifest_that_is_missing_damaged_or_newer_is_refused(final, content, message):
    (final / "manifest.json").unlink()
    if content is not None:
        (final / "manifest.json").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        checkpoint.read_manifest(final)


def test_room_on_the_disk_is_checked_before_anything_is_written(tmp_path):
    writing.check_room(tmp_path / "not" / "yet", 1)
    with pytest.raises(OSError, match="No space left on device: 1,000,000,000,000,000,000 bytes"):
        writing.check_room(tmp_path / "not" / "yet", 10**18)


def in_the_way(directory):
    """A file where the directory was."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.write_text("in the way")


@contextlib.contextmanager
def files_of_at_most(size):
    """Limits the size of files, like a full disk or a quota."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def save_final_to(path):
    checkpoint.save_final(path / "final", {"k": jnp.arange(2000.0)}, {"stage": "s"})


def save_states_to(path):
    states = States(path)
    states.save(3, STATE)
    states.close()


@pytest.mark.parametrize("save", [save_states_to, save_final_to])
@pytest.mark.parametrize("limit", [None, 100], ids=["no directory", "full"])
def test_a_save_that_fails_is_one_message_and_leaves_nothing_running(
    tmp_path, monkeypatch, save, limit
):
    """Threads that wait for a directory would delay the process's end by five minutes."""
    # As in a command line: what the files of a failed save tell a loop that is closed.
    monkeypatch.setattr(sys, "unraisablehook", app._unraisable)
    before = set(threading.enumerate())
    if limit is None:
        in_the_way(tmp_path / "there")
    with (
        files_of_at_most(limit) if limit else contextlib.nullcontext(),
        pytest.raises(OSError, match="cannot write .*there.*: .*start the same command again"),
    ):
        save(tmp_path / "there")
    gc.collect()  # What never ran would warn here.
    idle = set(concurrent.futures.thread._threads_queues)  # Of pools, which end with the process.
    deadline = time.monotonic() + 60
    while left := set(threading.enumerate()) - before - idle:
        assert time.monotonic() < deadline, [thread.name for thread in left]
        time.sleep(0.05)


def test_a_disk_that_cannot_be_written_keeps_what_was_restored(saved):
    states = States(saved)
    restored = states.restore(like(STATE))
    in_the_way(saved)
    with pytest.raises(OSError, match="cannot write .*states: "):
        states.save(3, restored)
        states.close()
    same(restored, at(2))


def run_meshes(devices, *arguments):
    """Starts tests/meshes.py with a number of CPU devices."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    environment["PYTHONFAULTHANDLER"] = "1"
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, "-m", "tests.meshes", *map(str, arguments)]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipe)


def ended(processes):
    """Returns exit codes and outputs; a process that takes a minute prints its stack and ends."""
    printed = []
    for process in processes:
        try:
            printed.append(process.communicate(timeout=60)[0])
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            printed.append(process.communicate()[0])
    return [process.returncode for process in processes], printed


def test_states_move_between_numbers_of_devices_and_processes_bit_for_bit(tmp_path):
    # On busy cores two processes were once seen to wait for each other; launchers restart them.
    for folder in (tmp_path / "first", tmp_path / "second"):
        meshes.write(folder / "one" / "states", [5], 1)
        port = free_port()
        codes, printed = ended([run_meshes(2, "pair", folder, port, index) for index in (0, 1)])
        if -signal.SIGABRT not in codes:
            break
    assert codes == [0, 0], printed
    codes, printed = ended([run_meshes(8, "eight", folder)])
    assert codes == [0], printed
    meshes.check(States(folder / "pair" / "states").restore(meshes.like(1)), 1)
