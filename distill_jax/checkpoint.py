"""What a stage leaves on disk: resumable states, and its final network with a manifest.

    STAGE/states/STEP/       whole training states, written in the background, the newest few
    STAGE/final/params/      the finished network's parameters
    STAGE/final/manifest.json  written last: a final/ with a manifest is complete

Every file of a checkpoint is listed with its size and checksum once it is written, because a
flipped byte in the middle of an array would otherwise restore as a wrong number.
"""

import contextlib
import itertools
import json
import logging
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import LatestN

from distill_jax.typing import Tree

FORMAT = 1
SEAL = "checksums.json"


class States:
    """The resumable states of one stage, newest first.

    Args:
      directory: made when absent.
      keep: how many to keep; at least 2, so that a damaged one has a predecessor.
    """

    def __init__(self, directory: epath.PathLike, keep: int = 2):
        self._directory = epath.Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(preservation_policy=LatestN(max(2, keep)))
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def steps(self) -> list[int]:
        """The iterations of the saved states, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Tree) -> None:
        """Starts writing the state of iteration `step`, after the one before is complete."""
        with _writing(self._directory):
            check_room(self._directory, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
            self._finish()
            item = ocp.args.Composite(state=ocp.args.StandardSave(state))
            self._manager.save(step, args=item, force=True)

    def restore(self, like: Tree, warn: Callable[[str], None] = logging.warning) -> Tree | None:
        """The newest state that can be read, None without one.

        A damaged state is reported, set aside as `damaged_STEP` and passed over for the one before.

        Args:
          like: a tree of jax.ShapeDtypeStruct with the shardings to restore to.
          warn: gets one line for each state passed over.

        Raises:
          ValueError: when an undamaged state has another structure than `like`.
        """
        item = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        for step in reversed(self.steps()):
            directory = self._directory / str(step)
            fault = damage(directory)
            if fault is None:
                try:
                    return self._manager.restore(step, args=item)["state"]
                except Exception as error:  # Whatever the storage layers raise.
                    fault = str(error).splitlines()[0]
                    if (directory / SEAL).exists():
                        raise ValueError(
                            f"{directory} is intact but does not fit this run: {fault}; remove "
                            f"{self._directory} to begin the stage again"
                        ) from error
            aside = self._aside(step)
            warn(f"{directory}: damaged ({fault}); kept as {aside.name}, using the one before it")
            directory.rename(aside)
            self._manager.reload()
        return None

    def _aside(self, step: int) -> epath.Path:
        """A name for a damaged state that no earlier one has."""
        first = self._directory.parent / f"damaged_{step}"
        others = (first.parent / f"{first.name}_{n}" for n in itertools.count(1))
        return next(path for path in itertools.chain([first], others) if not path.exists())

    def close(self) -> None:
        """Waits until everything is on disk."""
        with _writing(self._directory):
            self._finish()
            self._manager.close()

    def _finish(self) -> None:
        self._manager.wait_until_finished()
        steps = self.steps()
        if steps and not (self._directory / str(steps[-1]) / SEAL).exists():
            seal(self._directory / str(steps[-1]))


def save_final(directory: epath.PathLike, params: Tree, manifest: Mapping[str, Any]) -> None:
    """Writes final/: parameters first, then the manifest that makes it count."""
    directory = epath.Path(directory).absolute()
    with _writing(directory), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "params", params, force=True)
    if jax.process_index() == 0:
        seal(directory / "params")
        write_json(directory / "manifest.json", {"format": FORMAT, **manifest})


def record(directory: epath.PathLike, metrics: Mapping[str, Any]) -> None:
    """Puts measured quality, with the name of its protocol, into a final/'s manifest."""
    path = epath.Path(directory) / "manifest.json"
    write_json(path, {**read_manifest(directory), "metrics": metrics})


def fingerprint(directory: epath.PathLike) -> int:
    """A number that differs between finals with different weights."""
    return zlib.crc32((epath.Path(directory) / "params" / SEAL).read_bytes())


def read_manifest(directory: epath.PathLike) -> dict[str, Any]:
    """The manifest of a final/.

    Raises:
      FileNotFoundError: without a manifest.
      ValueError: when it cannot be read or was written by a newer version.
    """
    path = epath.Path(directory) / "manifest.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: {directory} is not a finished network; give a workdir, a "
            "stage or its final/ directory of a run that got that far"
        )
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; train the stage again") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise ValueError(f"{path} is no manifest of distill_jax: it has no format number")
    if manifest["format"] > FORMAT:
        raise ValueError(
            f"{path} has format {manifest['format']}; this version of distill_jax reads up to "
            f"{FORMAT}: install a newer one"
        )
    return manifest


def load_params(directory: epath.PathLike, like: Tree) -> Tree:
    """The parameters of a final/ in the structure and shardings of `like`.

    Raises:
      ValueError: when a file is damaged.
    """
    path = epath.Path(directory).absolute() / "params"
    fault = damage(path)
    if fault is not None:
        raise ValueError(
            f"{path} is damaged ({fault}); remove {path.parent} and run the stage again, or copy "
            "it anew from where it came"
        )
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, like)


def seal(directory: epath.PathLike) -> None:
    """Lists every file below a directory with its size and CRC-32."""
    directory = epath.Path(directory)
    files = [path for path in _walk(directory) if path.name != SEAL]
    listing = {str(path.relative_to(directory)): _fingerprint(path) for path in files}
    write_json(directory / SEAL, listing)


def damage(directory: epath.PathLike) -> str | None:
    """What differs from the seal, None when nothing does or there is no seal yet."""
    directory = epath.Path(directory)
    path = directory / SEAL
    if not path.exists():
        return None
    try:
        listing = json.loads(path.read_text())
    except ValueError:
        return f"{SEAL} cannot be read"
    for name, expected in listing.items():
        file = directory / name
        if not file.exists():
            return f"{name} is missing"
        size, checksum = _fingerprint(file)
        if size != expected[0]:
            return f"{name} has {size} bytes of {expected[0]}"
        if checksum != expected[1]:
            return f"{name} has a wrong checksum"
    return None


def check_room(directory: epath.PathLike, size: int) -> None:
    """Raises OSError when the disk of a local directory has less than `size` bytes free."""
    path = epath.Path(directory)
    while not path.exists() and path != path.parent:
        path = path.parent
    if "://" not in str(path) and shutil.disk_usage(path).free < size:
        free = shutil.disk_usage(path).free
        raise OSError(f"No space left on device: {size:,} bytes needed, {free:,} free")


@contextlib.contextmanager
def _writing(directory: epath.Path) -> Iterator[None]:
    """Turns what the storage layers raise, in this thread or a later one, into an OSError."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        # The storage layers put the cause last, after the names of all files on the way to it.
        reason = str(error).partition("\n")[0].rpartition('": ')[2] or type(error).__name__
        raise OSError(
            f"cannot write {directory}: {reason}; make room or choose another --workdir, and run "
            "the same command again: what was saved before is kept"
        ) from error


def _walk(directory: epath.Path) -> list[epath.Path]:
    found = []
    for path in sorted(directory.iterdir()):
        found += _walk(path) if path.is_dir() else [path]
    return found


def _fingerprint(path: epath.Path) -> list[int]:
    content = path.read_bytes()
    return [len(content), zlib.crc32(content)]


def write_json(path: epath.Path, content: Mapping[str, Any]) -> None:
    """Replaces the file in one step, so that a kill leaves the old one or the new one."""
    partial = path.parent / f"{path.name}.partial"
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)
