"""Foreign files never execute, hang, take a gigabyte above their size, or end in a traceback."""

import contextlib
import json
import math
import os
import resource
import signal
import sys

import pytest

from distill_jax.runtime.app import is_message, message
from distill_jax.teachers import edm, importing
from distill_jax.teachers.given import MAX_BLOCKS
from tests.teachers import hostile
from tests.teachers.test_edm import SMALL, SONG, state_of

SECONDS, MEMORY = 5, 1 << 30  # Processor time, and memory above the size of a file.
EVENTS = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"}
watched = []


def _audit(event, arguments):
    if watched and (event in EVENTS or (event == "open" and "trap" in str(arguments[0]))):
        watched.append(event)


sys.addaudithook(_audit)


@contextlib.contextmanager
def limits(size):
    """Limits time and memory, and fails if anything was executed."""

    def stop(*_):
        watched.append("late")  # The exception may be caught.
        raise TimeoutError(f"more than {SECONDS} s")

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGPROF, stop)
    resource.setrlimit(resource.RLIMIT_AS, (used + size + MEMORY, before[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    watched.append("begin")
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)
        events = watched[:]
        watched.clear()
    assert events == ["begin"]


def refusal(kind, path, out):
    """Returns the message of an import that must fail."""
    size = path.stat().st_size if path.is_file() else 0
    with limits(size), pytest.raises((ValueError, OSError)) as caught:
        importing.convert(kind, path, out)
    assert not isinstance(caught.value, TimeoutError)
    assert is_message(caught.value), repr(caught.value)
    found = message(caught.value)
    assert len(found) < 1500
    assert found.isprintable()  # In particular it is one line, without escapes of a terminal.
    assert "MemoryError" not in found
    assert not out.exists()
    return found


@pytest.mark.parametrize("group", hostile.GROUPS)
def test_every_hostile_file_ends_in_one_message(group, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kind, files = hostile.GROUPS[group]
    path = tmp_path / f"file.{kind}"
    wrong = {}
    for name, content in files():
        path.write_bytes(content)
        try:
            refusal(kind.partition(".")[0], path, tmp_path / "out")
        except BaseException as error:  # Also what pytest.raises raises.
            wrong[name] = f"{error!r:.300}"
        assert not (tmp_path / "trap").exists(), name
    assert not wrong


BAD = (10**6, 10**18, -1, 0, True, "x", math.nan, -math.inf, None, b"x", (), [10**18] * 3, {"a": 1})


@pytest.mark.parametrize("name", edm.RULES)
def test_every_number_of_a_description_is_bounded_before_it_sizes_anything(name):
    good = {**SMALL, **SONG, "model_channels": 16}
    state = state_of(good)
    for value in (*BAD, [1] * 5000, "9" * 10**6, 10**400):
        kwargs = {**good, name: value}
        with limits(0), contextlib.suppress(ValueError):
            imported = edm.convert("EDMPrecond", kwargs, state)
            assert imported.expected_params()  # The value is one that the option may have.
    with pytest.raises(ValueError, match=f"{name} is .*; expected"):
        edm.convert("EDMPrecond", {**good, name: [[1]] * 50}, state)


def test_a_description_of_more_blocks_than_arrays_is_refused():
    many = {**SMALL, **SONG, "model_channels": 16, "num_blocks": MAX_BLOCKS}
    for blocks in (40, MAX_BLOCKS):
        with limits(0), pytest.raises(ValueError, match="blocks, and its .* arrays are too few"):
            edm.convert("EDMPrecond", {**many, "num_blocks": blocks}, state_of(SMALL | SONG))


@pytest.mark.parametrize("kind", ["edm", "adm", "google_research", "safetensors"])
def test_a_source_that_is_no_file_is_refused_at_once(kind, tmp_path):
    out = tmp_path / "out"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, target in {"zero": "/dev/zero", "link": "pipe", "gone": "nowhere"}.items():
        (tmp_path / name).symlink_to(target)
    expected = {"folder": "a directory", "gone": "does not exist"}
    for name in ("pipe", "folder", "zero", "link", "gone"):
        found = refusal(kind, tmp_path / name, out)
        assert expected.get(name, "is a pipe or a device") in found
    (tmp_path / "folder" / "unet").mkdir()
    assert "directory of diffusers" in refusal(kind, tmp_path / "folder", out)


def test_an_index_that_names_a_pipe_or_a_device_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").symlink_to("/dev/zero")
    index = tmp_path / "model.safetensors.index.json"
    for name in ("a", "b"):
        index.write_text(json.dumps({"weight_map": {"x": f"{name}.safetensors"}}))
        assert "is no regular file" in refusal("adm", index, tmp_path / "out")
    index.write_text(" " * (5 << 20))
    assert "an index has at most" in refusal("adm", index, tmp_path / "out")
