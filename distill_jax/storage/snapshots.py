"""Snapshots of the averages of a stage, from which others are reconstructed after its training.

    STAGE/posthoc/SIGMA_REL/ITERATION/    the average of this length after this many iterations

Each has the files and checksums of a final/params, and appears as a whole. With several processes,
all of them call every function in this file but `find`.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from distill_jax.runtime import distributed
from distill_jax.storage import checksums
from distill_jax.storage.checkpoint import check_tree, read_tree, save_tree
from distill_jax.storage.writing import check_room, guarded, share
from distill_jax.typing import Tree

FOLDER = "posthoc"
ADVICE = "move it away: the average is then reconstructed from the other snapshots"


class Snapshot(NamedTuple):
    """A stored average: its length, its iteration, and its directory."""

    sigma_rel: float
    iteration: int
    directory: epath.Path


def find(stage: epath.Path) -> list[Snapshot]:
    """Returns the snapshots in the directory of a stage, by length and iteration."""
    return sorted(_find(stage / FOLDER))


def _find(folder: epath.Path) -> Iterator[Snapshot]:
    for average in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(ValueError):
            sigma_rel = float(average.name)
            for path in average.iterdir() if average.is_dir() else ():
                if re.fullmatch(r"[1-9]\d{0,9}", path.name):
                    yield Snapshot(sigma_rel, int(path.name), path)


def remove_after(stage: epath.Path, iteration: int) -> None:
    """Removes snapshots of later iterations and unfinished ones, which a run writes again."""
    folder = stage / FOLDER
    if distributed.first() and folder.is_dir():
        for path in [path for path in folder.glob("*/*") if path.is_dir()]:
            if not path.name.isdigit() or int(path.name) > iteration:
                path.rmtree()
    distributed.barrier("later snapshots removed")


def write(stage: epath.Path, iteration: int, averages: Mapping[float, Tree], dtype: str) -> None:
    """Writes the averages by length after an iteration, and waits until they are on the disk."""
    for sigma_rel, tree in averages.items():
        path = stage / FOLDER / str(sigma_rel) / str(iteration)
        tree = _as(dtype, tree)
        with guarded(path):
            check_room(path, share(tree))
            if distributed.first():
                path.parent.mkdir(parents=True, exist_ok=True)
            save_tree(path, tree, stage.name)


def read(snapshot: Snapshot, like: Tree, stage: str) -> Tree:
    """Reads a snapshot in the structure and shardings of `like`.

    Raises:
      ValueError: if it is damaged, does not fit, or is that of another stage.
    """
    path = snapshot.directory
    check_tree(path, like, ADVICE)
    if (found := checksums.read(path).get("stage")) != stage:
        raise ValueError(f"{path} is a snapshot of stage {found}, not of {stage}; {ADVICE}")
    return read_tree(path, like, ADVICE)


def _as(dtype: str, tree: Tree) -> Tree:
    return _cast(tree) if dtype == "bfloat16" else tree


@jax.jit
def _cast(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)
