"""Shared parts of writing checkpoints: room on disk, background threads, names, errors."""

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator

import jax
import orbax.checkpoint as ocp
from etils import epath

from distill_jax.storage.weights import LeafError
from distill_jax.typing import Tree


def in_background(write_listing: Callable[[], None]) -> ocp.options.AsyncOptions:
    """Arrays are written in the background; directories are made before that.

    Were they made in the background too, a save that cannot make one would leave Orbax's threads
    waiting for it: 300 s in which the process cannot end, and then warnings of what never ran.
    """
    return ocp.options.AsyncOptions(
        post_finalization_callback=write_listing, create_directories_asynchronously=False
    )


def set_aside(path: epath.Path, name: epath.Path) -> epath.Path:
    """Renames a directory to `name`, or name_1, name_2, ..., and returns what it is now."""
    others = (name.parent / f"{name.name}_{n}" for n in itertools.count(1))
    free = next(path for path in itertools.chain([name], others) if not path.exists())
    return path.rename(free)


def share(tree: Tree) -> int:
    """Bytes of the arrays that this process writes: of every piece the first copy."""
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
    )


def check_room(directory: epath.PathLike, size: int) -> None:
    """Raises OSError when the disk of a local directory has less than `size` bytes free."""
    path = epath.Path(directory)
    while not path.exists() and path != path.parent:
        path = path.parent
    if "://" not in str(path) and shutil.disk_usage(path).free < size:
        free = shutil.disk_usage(path).free
        raise OSError(f"No space left on device: {size:,} bytes needed, {free:,} free")


@contextlib.contextmanager
def guarded(directory: epath.Path) -> Iterator[None]:
    """Turns what the storage layers raise, in this thread or a later one, into an OSError."""
    try:
        yield
    except LeafError:  # What is written is at fault, and not where.
        raise
    except (OSError, RuntimeError, ValueError) as error:
        peer = jax.errors.JaxRuntimeError, TimeoutError  # The latter from the background.
        lost = jax.process_count() > 1 and isinstance(error, peer)
        if lost or "://" in str(directory):
            # Another process is gone, or the network was: the same command may do better.
            raise RuntimeError(f"cannot write {directory}") from error
        # The storage layers put the cause last, after the names of all files on the way to it.
        reason = str(error).partition("\n")[0].rpartition('": ')[2] or type(error).__name__
        raise OSError(
            f"cannot write {directory}: {reason}; make room or choose another --workdir, and run "
            "the same command again: what was saved before is kept"
        ) from error


def unnamed(path: epath.Path) -> epath.Path:
    """Where a checkpoint is before it gets its name; on buckets, which cannot rename, there."""
    temporary = path.parent / f"{path.name}{ocp.utils.TMP_DIR_SUFFIX}"
    return temporary if temporary.exists() else path
