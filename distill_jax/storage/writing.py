"""Shared parts of writing checkpoints: room on disk, background threads, names, errors."""

import contextlib
import shutil
from collections.abc import Callable, Iterator

import jax
import orbax.checkpoint as ocp
from etils import epath

from distill_jax.storage.weights import LeafError
from distill_jax.typing import Tree


def in_background(write_listing: Callable[[], None]) -> ocp.options.AsyncOptions:
    """Returns Orbax options that write arrays, but not directories, in the background.

    If directories were created in the background too, a failure to create one would leave Orbax's
    threads waiting for 300 s, in which the process cannot end.
    """
    return ocp.options.AsyncOptions(
        post_finalization_callback=write_listing, create_directories_asynchronously=False
    )


def share(tree: Tree) -> int:
    """Returns the bytes that this process writes: its addressable shards with replica_id 0."""
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
    )


def check_room(directory: epath.PathLike, size: int) -> None:
    """Raises OSError if the disk of a local directory has less than `size` bytes free."""
    path = epath.Path(directory)
    while not path.exists() and path != path.parent:
        path = path.parent
    if "://" not in str(path) and shutil.disk_usage(path).free < size:
        free = shutil.disk_usage(path).free
        raise OSError(f"No space left on device: {size:,} bytes needed, {free:,} free")


@contextlib.contextmanager
def guarded(directory: epath.Path) -> Iterator[None]:
    """Turns errors of the storage libraries, also from background threads, into an OSError."""
    try:
        yield
    except LeafError:  # The values are at fault, not the disk.
        raise
    except (OSError, RuntimeError, ValueError) as error:
        peer = jax.errors.JaxRuntimeError, TimeoutError  # TimeoutError comes from the background.
        lost = jax.process_count() > 1 and isinstance(error, peer)
        if lost or "://" in str(directory):
            # A lost process or a connection error: a restart may succeed.
            raise RuntimeError(f"cannot write {directory}") from error
        # The libraries' messages end with the cause, after the names of files.
        reason = str(error).partition("\n")[0].rpartition('": ')[2] or type(error).__name__
        full = any(word in reason for word in ("space", "quota", "large"))
        raise OSError(
            f"cannot write {directory}: {reason}; {'make room' if full else 'repair that'} or "
            "choose another --workdir, and start the same command again: what was saved is kept"
        ) from error


def unnamed(path: epath.Path) -> epath.Path:
    """Returns the temporary path of a checkpoint before its rename; on buckets its final path."""
    temporary = path.parent / f"{path.name}{ocp.utils.TMP_DIR_SUFFIX}"
    return temporary if temporary.exists() else path
