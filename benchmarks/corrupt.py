"""Damages the files of a stage in many ways, and prints how a run reacts.

    python benchmarks/corrupt.py          # seconds

Each row starts from two stages with the states of iterations 1 and 2 and a finished network. Beside
what the run says, it is checked that every file that was there is still somewhere afterwards.
"""

import json
import pathlib
import re
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.runtime import logging
from distill_jax.storage import checkpoint, checksums
from distill_jax.storage.states import States

STAGE, OTHER = "s02_n0032", "s01_guided"
NEWEST = f"{STAGE}/states/2"
NEWER = checksums.FORMAT + 1
PASSED, REFUSED, TRAINED = "goes on after 1", "refused", "trained again"


def state(step, size=3000):
    """Returns a small training state."""
    return {"kernel": jnp.arange(float(size)) + step, "step": jnp.asarray(step)}


def like(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def write_stage(folder, name, tree=state):
    """Writes the files of a stage: two states and a finished network."""
    states = States(folder / name / "states")
    for step in (1, 2):
        states.save(step, tree(step))
    states.close()
    checkpoint.save_final(folder / name / "final", tree(len(name)), {"stage": name})


def biggest(directory):
    files = [path for path in directory.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(directory):
    shutil.rmtree(directory)
    directory.mkdir()


def replace(old, new):
    shutil.rmtree(old)
    shutil.copytree(new, old)


def rewrite(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def reshape(folder, part):
    """Replaces a state or network by one of another width."""
    with tempfile.TemporaryDirectory() as temporary:
        elsewhere = pathlib.Path(temporary)
        write_stage(elsewhere, STAGE, lambda step: state(step, size=4000))
        replace(folder / part, elsewhere / part)


def restructure(folder, part):
    """Replaces a state or network by one with an additional array."""
    with tempfile.TemporaryDirectory() as temporary:
        elsewhere = pathlib.Path(temporary)
        write_stage(elsewhere, STAGE, lambda step: {**state(step), "more": jnp.zeros(7)})
        replace(folder / part, elsewhere / part)


def half_write(folder):
    partial = folder / f"{STAGE}/states/3.orbax-checkpoint-tmp"
    shutil.copytree(folder / NEWEST / "state", partial / "state")


def other_params(folder):
    replace(folder / STAGE / "final/params", folder / OTHER / "final/params")


# Kind of damage | damaged file | function of the folder of both stages | required outcome.
CASES = [
    ("file cut short", "newest state", lambda f: cut(biggest(f / NEWEST)), PASSED),
    ("byte flipped", "newest state", lambda f: flip(biggest(f / NEWEST)), PASSED),
    ("file missing", "newest state", lambda f: biggest(f / NEWEST).unlink(), PASSED),
    (
        "list of checksums missing",
        "newest state",
        lambda f: (f / NEWEST / checksums.FILE).unlink(),
        PASSED,
    ),
    (
        "list of checksums cut short",
        "newest state",
        lambda f: cut(f / NEWEST / checksums.FILE),
        PASSED,
    ),
    ("directory empty", "newest state", lambda f: empty(f / NEWEST), PASSED),
    (
        "byte flipped in each",
        "both states",
        lambda f: [flip(biggest(f / STAGE / "states" / n)) for n in "12"],
        "begins the stage again",
    ),
    ("directory empty", "states/", lambda f: empty(f / STAGE / "states"), "begins the stage again"),
    ("half written by a killed run", "newest state", half_write, "goes on after 2"),
    ("another width", "newest state", lambda f: reshape(f, NEWEST), REFUSED),
    ("another structure", "newest state", lambda f: restructure(f, NEWEST), REFUSED),
    (
        "another stage's, of the same structure",
        "newest state",
        lambda f: replace(f / NEWEST, f / OTHER / "states/2"),
        REFUSED,
    ),
    (
        "newer format",
        "newest state",
        lambda f: rewrite(f / NEWEST / checksums.FILE, format=NEWER),
        REFUSED,
    ),
    ("file cut short", "final/params", lambda f: cut(biggest(f / STAGE / "final/params")), REFUSED),
    ("byte flipped", "final/params", lambda f: flip(biggest(f / STAGE / "final/params")), REFUSED),
    (
        "file missing",
        "final/params",
        lambda f: biggest(f / STAGE / "final/params").unlink(),
        REFUSED,
    ),
    ("directory empty", "final/params", lambda f: empty(f / STAGE / "final/params"), REFUSED),
    (
        "directory missing",
        "final/params",
        lambda f: shutil.rmtree(f / STAGE / "final/params"),
        REFUSED,
    ),
    ("another width", "final/params", lambda f: reshape(f, f"{STAGE}/final"), REFUSED),
    ("another structure", "final/params", lambda f: restructure(f, f"{STAGE}/final"), REFUSED),
    ("another stage's, of the same structure", "final/params", other_params, REFUSED),
    (
        "newer format",
        "final/params",
        lambda f: rewrite(f / STAGE / "final/params" / checksums.FILE, format=NEWER),
        REFUSED,
    ),
    ("file cut short", "manifest.json", lambda f: cut(f / STAGE / "final/manifest.json"), REFUSED),
    ("byte flipped", "manifest.json", lambda f: flip(f / STAGE / "final/manifest.json"), REFUSED),
    (
        "newer format",
        "manifest.json",
        lambda f: rewrite(f / STAGE / "final/manifest.json", format=NEWER),
        REFUSED,
    ),
    (
        "file missing",
        "manifest.json",
        lambda f: (f / STAGE / "final/manifest.json").unlink(),
        TRAINED,
    ),
    ("directory empty", "final/", lambda f: empty(f / STAGE / "final"), TRAINED),
    (
        "another stage's",
        "final/",
        lambda f: replace(f / STAGE / "final", f / OTHER / "final"),
        REFUSED,
    ),
]


def contents(folder):
    """Returns the contents of all files below, sorted and without half-written ones."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(path.read_bytes() for path in files if "orbax-checkpoint-tmp" not in str(path))


def read_states(folder):
    lines = []
    states = States(folder / STAGE / "states")
    try:
        found = states.restore(like(state(0)), lines.append)
    except ValueError as error:
        return REFUSED, str(error)
    finally:
        states.close()
    if found is None:
        return "begins the stage again", "; ".join(lines)
    np.testing.assert_array_equal(found["kernel"], state(found["step"])["kernel"])
    return f"goes on after {found['step']}", "; ".join(lines)


def read_final(folder):
    """Reads a final/ as a run does: without a manifest it is not finished, else it is loaded."""
    final = folder / STAGE / "final"
    if not (final / "manifest.json").exists():
        checkpoint.save_final(final, state(9), {"stage": STAGE})
        return TRAINED, ""
    try:
        checkpoint.read_manifest(final)
        checkpoint.load_params(final, like(state(0)))
    except ValueError as error:
        return REFUSED, str(error)
    return "read", ""


def outcome(folder, where, harm):
    """Returns what a run does and says after the damage; AssertionError if a file is lost."""
    harm(folder)
    before = contents(folder)
    happened, message = (read_states if "state" in where else read_final)(folder)
    after = contents(folder)
    for content in set(before):
        assert after.count(content) >= before.count(content), "a file was lost"
    return happened, re.sub("[0-9a-f]{32}", "FILE", message.replace(f"{folder}/", ""))


def main():
    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        for name in (STAGE, OTHER):
            write_stage(folder / "template", name)
        for i, (done, where, harm, expected) in enumerate(CASES):
            shutil.copytree(folder / "template", folder / str(i))
            happened, message = outcome(folder / str(i), where, harm)
            wrong += happened != expected
            rows.append((done, where, happened, message or "-"))
    print(logging.table(("what was done", "where", "what happens", "message"), rows))
    print(f"\n{len(rows)} cases, {wrong} with another outcome than wanted; no file was lost")
    return wrong


if __name__ == "__main__":
    raise SystemExit(main())
