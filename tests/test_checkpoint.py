import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from distill_jax import checkpoint

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
    states = checkpoint.States(tmp_path / "states")
    for step in (1, 2):
        states.save(step, at(step))
    states.close()
    return tmp_path / "states"


def biggest(directory):
    return max(
        (path for path in directory.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )


def test_the_newest_state_comes_back_bit_for_bit(saved):
    states = checkpoint.States(saved)
    assert states.steps() == [1, 2]
    same(states.restore(like(STATE)), at(2))


def test_without_a_state_nothing_comes_back(tmp_path):
    assert checkpoint.States(tmp_path / "states").restore(like(STATE)) is None


def test_only_the_newest_few_are_kept(tmp_path):
    states = checkpoint.States(tmp_path / "states", keep=2)
    for step in range(1, 5):
        states.save(step, at(step))
    states.close()
    assert checkpoint.States(tmp_path / "states").steps() == [3, 4]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped byte": (lambda step: flip(biggest(step)), "wrong checksum"),
    "cut short": (
        lambda step: biggest(step).write_bytes(biggest(step).read_bytes()[:99]),
        "has 99 bytes of",
    ),
    "missing file": (lambda step: biggest(step).unlink(), "is missing"),
    "empty directory": (lambda step: [shutil.rmtree(step), step.mkdir()], ""),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_state_is_reported_and_the_one_before_it_used(saved, kind):
    harm, reason = DAMAGES[kind]
    harm(saved / "2")
    lines = []
    states = checkpoint.States(saved)
    same(states.restore(like(STATE), lines.append), at(1))
    assert len(lines) == 1
    assert reason in lines[0]
    assert "using the one before it" in lines[0]
    assert (saved.parent / "damaged_2").exists()
    states.save(2, at(2))
    states.close()
    assert checkpoint.States(saved).steps() == [1, 2]


def test_a_state_damaged_twice_is_set_aside_twice(saved):
    for _ in range(2):
        flip(biggest(saved / "2"))
        states = checkpoint.States(saved)
        same(states.restore(like(STATE), lambda line: None), at(1))
        states.save(2, at(2))
        states.close()
    names = sorted(path.name for path in saved.parent.glob("damaged*"))
    assert names == ["damaged_2", "damaged_2_1"]


def test_a_sound_state_of_another_structure_is_refused_and_stays_where_it_is(saved):
    states = checkpoint.States(saved)
    with pytest.raises(ValueError, match="does not fit this run"):
        states.restore(like({**STATE, "more": jnp.zeros(7)}))
    assert states.steps() == [1, 2]


def test_a_state_half_written_is_passed_over(saved):
    (saved / "3.orbax-checkpoint-tmp").mkdir()
    (saved / "3.orbax-checkpoint-tmp" / "part").write_text("x")
    same(checkpoint.States(saved).restore(like(STATE)), at(2))


@pytest.fixture
def final(tmp_path):
    """A finished network of one array."""
    checkpoint.save_final(epath.Path(tmp_path / "final"), {"k": jnp.arange(2000.0)}, {"stage": "s"})
    return tmp_path / "final"


def test_a_final_network_comes_back_with_its_manifest(final):
    assert checkpoint.read_manifest(final) == {"format": checkpoint.FORMAT, "stage": "s"}
    params = checkpoint.load_params(final, {"k": jax.ShapeDtypeStruct((2000,), jnp.float32)})
    np.testing.assert_array_equal(params["k"], np.arange(2000.0))


def test_metrics_can_be_put_into_a_manifest_later(final):
    checkpoint.record(epath.Path(final), {"rows": [1]})
    assert checkpoint.read_manifest(final)["metrics"] == {"rows": [1]}


def test_a_damaged_final_network_is_refused(final):
    flip(biggest(final / "params"))
    with pytest.raises(ValueError, match="is damaged .*wrong checksum"):
        checkpoint.load_params(final, {"k": jax.ShapeDtypeStruct((2000,), jnp.float32)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a finished network"),
        ("{", "is damaged"),
        ("{}", "no format number"),
        (json.dumps({"format": checkpoint.FORMAT + 1}), "install a newer one"),
    ],
)
def test_a_manifest_that_is_missing_damaged_or_newer_is_refused(final, content, message):
    (final / "manifest.json").unlink()
    if content is not None:
        (final / "manifest.json").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        checkpoint.read_manifest(final)


def test_room_on_the_disk_is_checked_before_anything_is_written(tmp_path):
    checkpoint.check_room(tmp_path / "not" / "yet", 1)
    with pytest.raises(OSError, match="No space left on device: 1,000,000,000,000,000,000 bytes"):
        checkpoint.check_room(tmp_path / "not" / "yet", 10**18)


def test_a_disk_that_cannot_be_written_is_one_message_and_keeps_what_was_there(saved):
    states = checkpoint.States(saved)
    restored = states.restore(like(STATE))
    shutil.rmtree(saved)
    saved.write_text("in the way")
    with pytest.raises(OSError, match="cannot write .*states: "):
        states.save(3, restored)
        states.close()
