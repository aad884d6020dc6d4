"""Checks of arrays on several devices and processes; each command exits with 0 or an error.

python -m tests.meshes rows                      one process with 8 devices
python -m tests.meshes shares                    one process with 8 devices
python -m tests.meshes gather                    one process with 8 devices
python -m tests.meshes eight DIRECTORY           one process with 8 devices
python -m tests.meshes pair DIRECTORY PORT ID    two processes, of 2 devices each
"""

import math
import os
import pathlib
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from distill_jax.run.fits import in_shares
from distill_jax.runtime import distributed
from distill_jax.runtime.preemption import StopFlag
from distill_jax.runtime.sharding import AXES, make_layout
from distill_jax.sampling.codecs import PatchPca
from distill_jax.storage import checkpoint, writing
from distill_jax.storage.states import States

SHAPE = (64, 128)  # Large enough for the rules of sharding.py to split it.


def values(step):
    """Returns a training state of that iteration, in this process's memory."""
    rng = np.random.default_rng(step)
    kernel = rng.standard_normal(SHAPE, np.float32)
    return {"kernel": kernel, "bias": kernel[0], "step": np.int32(step)}


def layout_of(count):
    """Returns the layout that splits all parameters over the first devices."""
    return make_layout({"fsdp": count}, jax.devices()[:count])


def like(count):
    """Returns the abstract state to restore into, on the first devices."""
    return layout_of(count).abstract(values(0))


def placed(step, count):
    """Returns the state on the first devices."""

    def put(array, shape):
        return jax.make_array_from_callback(shape.shape, shape.sharding, lambda at: array[at])

    return jax.tree.map(put, jax.tree.map(np.asarray, values(step)), like(count))


def check(state, step):
    """Raises AssertionError unless this process's shards equal that state bit for bit."""
    assert state is not None
    for name, array in values(step).items():
        for shard in state[name].addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), array[shard.index])


def write(directory, steps, count):
    """Saves the states of these iterations from the first devices."""
    states = States(directory)
    for step in steps:
        states.save(step, placed(step, count))
    states.close()


def flip(directory):
    """Flips a bit in the middle of the largest file."""
    path = max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def eight(folder):
    """Checks that states move from 8 devices to 1, 2, 4 and back."""
    for there, here in ((8, 1), (8, 2), (8, 4), (1, 8), (2, 8), (4, 8)):
        directory = folder / f"{there}_{here}" / "states"
        write(directory, [3], there)
        state = States(directory).restore(like(here))
        check(state, 3)
        assert len(state["kernel"].addressable_shards) == here
        assert state["kernel"].addressable_shards[0].data.size == SHAPE[0] * SHAPE[1] // here
    check(States(folder / "pair" / "states").restore(like(4)), 1)


def rows():
    """Checks that batches of 1 to 17 rows are padded, sharded and unpadded on three-axis meshes."""
    for sizes in ((8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8), (3, 1, 2)):
        devices = jax.devices()[: math.prod(sizes)]
        layout = make_layout(dict(zip(AXES, sizes, strict=True)), devices)
        for num in (1, 2, 3, 8, 17):
            x = np.random.default_rng(num).normal(size=(num, 2, 3)).astype(np.float32)
            split = jax.jit(layout.pad_and_shard)({"x": x, "n": np.arange(num)})
            places = {shard.device: shard.data for shard in split["x"].addressable_shards}
            assert places.keys() == {*devices}
            parts = {data.shape[0] * layout.ways for data in places.values()}
            assert parts == {len(split["x"])} and 0 <= len(split["x"]) - num < layout.ways
            np.testing.assert_array_equal(split["n"][num:], num - 1)
            np.testing.assert_array_equal(
                jax.jit(layout.unpad, static_argnums=1)(split["x"], num), x
            )


def shares():
    """Checks that images are encoded on all devices as on one."""
    x = np.random.default_rng(0).uniform(-1, 1, (20, 8, 8, 3)).astype(np.float32)
    codec, layout = PatchPca(patch=2, channels=3), make_layout({"data": -1})
    params = codec.fit(x)
    found = in_shares(codec, layout, layout.replicate(params), jnp.asarray(x))
    np.testing.assert_allclose(found, codec.encode(params, jnp.asarray(x)), atol=1e-5)


def gather():
    """Checks gathered weights of single and stacked layers, cast first, and their gradients."""
    layout = make_layout({"data": 2, "fsdp": 4})
    rng = np.random.default_rng(0)
    tree = {"up": rng.standard_normal(SHAPE), "block[0:3]": rng.standard_normal((3, *SHAPE))}
    tree = jax.tree.map(np.float32, tree)
    split = jax.device_put(tree, layout.shardings(tree))
    assert split["block[0:3]"].sharding.spec == PartitionSpec(None, None, "fsdp")

    def loss(split):
        whole = layout.gather(split, jnp.bfloat16)
        return sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in whole.values()), whole

    (_, whole), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(split)
    for name, leaf in tree.items():
        rounded = leaf.astype(jnp.bfloat16)
        assert whole[name].sharding.is_fully_replicated and whole[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(whole[name], rounded)
        assert gradient[name].sharding == split[name].sharding
        assert gradient[name].dtype == np.float32
        # The gradient 2 x is rounded to bfloat16 in the backward pass of the cast.
        np.testing.assert_allclose(gradient[name], 2 * rounded.astype(np.float32), rtol=2**-8)


def pair(folder, port, index):
    """Checks that two processes read the state of one, and a state of two with a damaged half."""
    distributed.start(f"localhost:{port}", 2, int(index))
    assert jax.device_count() == 4
    assert writing.share(placed(0, 4)["kernel"]) == 4 * SHAPE[0] * SHAPE[1] // 2
    check(States(folder / "one" / "states").restore(like(4)), 5)
    directory = folder / "pair" / "states"
    write(directory, [1, 2], 4)
    if distributed.first():
        flip(directory / "2")
    distributed.barrier("damaged")
    lines = []
    states = States(directory)
    check(states.restore(like(4), lines.append), 1)
    assert len(lines) == (1 if distributed.first() else 0), lines
    assert states.steps() == [1]
    states.close()
    final = folder / "pair" / "final"
    checkpoint.save_final(final, placed(7, 4), {"stage": "pair"})
    checkpoint.record(final, {"rows": [1]})
    check(checkpoint.load_params(final, like(4)), 7)
    if distributed.first():
        flip(final / "params")
    distributed.barrier("damaged final")
    try:
        checkpoint.load_params(final, like(4))
    except ValueError as error:
        assert "is damaged" in str(error)
    else:
        raise AssertionError("a damaged final was read")
    stop = StopFlag().install()
    assert not stop()
    write(folder / "late" / "states", [5003], 4)  # A resumed run: more iterations than polls.
    if not distributed.first():
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2)  # Until the notice reaches all processes, whose last poll was before they saved.
    for _ in range(100):
        if stop():
            return
        time.sleep(0.1)
    raise AssertionError("SIGTERM was not heard")


if __name__ == "__main__":
    folders = map(pathlib.Path, sys.argv[2:3])
    checks = {"rows": rows, "shares": shares, "gather": gather, "eight": eight, "pair": pair}
    checks[sys.argv[1]](*folders, *sys.argv[3:])
