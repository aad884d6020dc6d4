"""Tests of what a power cut at any moment leaves of states, finished networks and small files."""

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from benchmarks import power
from distill_jax.runtime.files import append, replace
from distill_jax.storage import checkpoint
from distill_jax.storage.states import States

ARRAY = {"a": jnp.arange(300.0)}
TEXTS = ["", "one\n", "two\n", "two\nthree\n"]
LIKE = {"a": jax.ShapeDtypeStruct((300,), jnp.float32, sharding=ARRAY["a"].sharding)}


def left(cut, folder):
    """Returns the state's first number, whether there is a final/, and which text is there."""
    power.write(cut, folder)
    said, final = [], folder / "s00" / "final"
    state = States(folder / "s00" / "states").restore(LIKE, said.append)
    assert not said
    if final.exists():
        np.testing.assert_array_equal(checkpoint.load_params(final, LIKE)["a"], ARRAY["a"])
    text = (folder / "text").read_text() if (folder / "text").exists() else ""
    return int(state["a"][0]) if state else 0, TEXTS.index(text), final.exists()


def test_a_power_cut_leaves_every_state_network_and_file_whole_or_not_at_all(tmp_path):
    workdir = epath.Path(tmp_path / "run")
    workdir.mkdir()
    with power.Record(workdir).recording() as record:
        states = States(workdir / "s00" / "states")
        for step in (1, 2, 3):
            states.save(step, {"a": ARRAY["a"] + step})
        states.close()
        for text in (b"one\n", b"two\n"):
            replace(workdir / "text", text)
        append(workdir / "text", "three\n")
        checkpoint.save_final(workdir / "s00" / "final", ARRAY, {"stage": "s00"}, ARRAY)
    for kind in ("ordered", "strict"):
        cuts = [cut for name, cut in record.cuts if name.startswith(kind)]
        found = [left(cut, tmp_path / f"{kind}{i}") for i, cut in enumerate(cuts)]
        assert found == sorted(found)  # Nothing that was there is lost later.
        states, texts, finals = (set(column) for column in zip(*found, strict=True))
        assert (states, texts, finals) == ({0, 1, 2, 3}, {0, 1, 2, 3}, {False, True})
