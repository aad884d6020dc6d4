"""What a stage leaves on disk: resumable states, and its final network with a manifest.

    STAGE/states/STEP/       whole training states, written in the background, the newest few
    STAGE/final/params/      the finished network's parameters
    STAGE/final/fake/        those of the fake network, of stages that keep it
    STAGE/final/manifest.json  written last: a final/ with a manifest is complete

Every file of a checkpoint is listed with its size and checksum before the checkpoint counts as
written, because a flipped byte in the middle of an array would otherwise restore as a wrong number.

With several processes all of them call everything here; the storage layer has each write and read
its own part of the arrays, and the first process alone does and decides the rest.
"""

import contextlib
import itertools
import json
import logging
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, EveryNSteps, LatestN

from distill_jax.runtime import distributed
from distill_jax.runtime.files import absolute, write_json
from distill_jax.runtime.trees import name_of
from distill_jax.storage import checksums, trees
from distill_jax.storage.weights import LeafError
from distill_jax.typing import Tree

# Of the folders of a final/, under which name the manifest has their fingerprint.
FINGERPRINTS = {"params": "fingerprint", "fake": "fake"}


class _Manager(ocp.CheckpointManager):
    """Orbax's, which leaves it to the run to ask whether it is to stop.

    JAX lets all processes stop at the same number of the question. Orbax would ask at each save,
    with the iteration as the number, and the run's own questions would then miss that of the stop.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class States:
    """The resumable states of one stage, newest first.

    Args:
      directory: STAGE/states; made when absent.
      keep: how many of the newest to keep; at least 2, so that a damaged one has a predecessor.
      keep_every: states of multiples of it are kept for good; 0 for none.
    """

    def __init__(self, directory: epath.PathLike, keep: int = 2, keep_every: int = 0):
        if keep_every < 0:
            raise ValueError(f"keep_every is {keep_every}; expected iterations, or 0 for none")
        self._directory = absolute(directory)
        self._stage, self._saving = self._directory.parent.name, 0
        policies = [LatestN(max(2, keep)), *([EveryNSteps(keep_every)] if keep_every else [])]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            lightweight_initialize=True,  # A state whose metadata are damaged is no reason to fail.
            async_options=_in_background(self._seal),
        )
        self._manager = _Manager(self._directory, options=options)

    def steps(self) -> list[int]:
        """The iterations of the saved states, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Tree) -> None:
        """Starts writing the state of iteration `step`, after the one before is complete.

        Returns once the state is copied from the devices; the rest happens in the background.
        """
        with _writing(self._directory):
            check_room(self._directory, share(state))
            self._manager.wait_until_finished()
            self._saving = step
            item = ocp.args.Composite(state=ocp.args.StandardSave(state))
            self._manager.save(step, args=item, force=True)

    def restore(self, like: Tree, warn: Callable[[str], None] = logging.warning) -> Tree | None:
        """The newest state that is undamaged, None without one.

        A damaged state is reported, set aside as `damaged_STEP` and passed over for the one before.

        Args:
          like: a tree of jax.ShapeDtypeStruct with the shardings to restore to.
          warn: gets one line for each state passed over.

        Raises:
          ValueError: when an undamaged state has another structure than `like`, is another stage's,
            or was written by a newer version.
        """
        while (step := distributed.agree(max(self.steps(), default=-1))) >= 0:
            directory = self._directory / str(step)
            stage = checksums.read(directory).get("stage", self._stage)
            if stage != self._stage:
                raise ValueError(
                    f"{directory} is a state of stage {stage}, not of {self._stage}: move it away, "
                    "and the one before it is used"
                )
            fault = checksums.damage(directory) if distributed.first() else None
            if not distributed.agree(int(fault is not None)):
                advice = f"move {self._directory} away to begin the stage again"
                return trees.read(directory / "state", like, advice)
            if distributed.first():
                aside = set_aside(directory, self._directory.parent / f"damaged_{step}")
                then = "using the one before it" if len(self.steps()) > 1 else "there is no other"
                warn(f"{directory}: damaged ({fault}); kept as {aside.name}, {then}")
            distributed.wait("set aside")
            self._manager.reload()
        return None

    def close(self) -> None:
        """Waits until everything is on disk."""
        with _writing(self._directory):
            self._manager.wait_until_finished()
            self._manager.close()

    def _seal(self) -> None:
        """Called by the first process in the background, before a state gets its name."""
        checksums.seal(_unnamed(self._directory / str(self._saving)), self._stage)


def save_final(
    directory: epath.PathLike,
    params: Tree,
    manifest: Mapping[str, Any],
    fake: Tree | None = None,
) -> None:
    """Writes final/: parameters first, then the manifest that makes it count.

    Args:
      directory: final/.
      params: of the finished network; where they are Stored, one at a time is read.
      manifest: what to say about it.
      fake: parameters of the fake network, None to leave them out.
    """
    directory = absolute(directory)
    networks = {"params": params} if fake is None else {"params": params, "fake": fake}
    with _writing(directory):
        for name, tree in networks.items():
            _save_tree(directory / name, tree, manifest.get("stage"))
        if distributed.first():
            found = {FINGERPRINTS[name]: fingerprint(directory, name) for name in networks}
            content = {"format": checksums.FORMAT, **manifest, **found}
            write_json(directory / "manifest.json", checksums.signed(content))
    distributed.wait("final written")


def _save_tree(path: epath.Path, tree: Tree, stage: str | None) -> None:
    """Writes the arrays of a final/, with their checksums."""
    if distributed.first() and path.exists():  # Of a manifest that was lost, or never written.
        set_aside(path, path.parent / f"{path.name}_without_manifest")
    distributed.wait("final set aside")
    options = _in_background(lambda: checksums.seal(_unnamed(path), stage))
    trees.write(path, tree, options)


def record(directory: epath.PathLike, metrics: Mapping[str, Any]) -> None:
    """Puts measured quality, with the name of its protocol, into a final/'s manifest."""
    path = epath.Path(directory) / "manifest.json"
    write_json(path, checksums.signed({**read_manifest(directory), "metrics": metrics}))


def fingerprint(directory: epath.PathLike, name: str = "params") -> int:
    """A number that differs between finals with different weights; 0 when they are damaged."""
    path = epath.Path(directory) / name / checksums.SEAL
    return zlib.crc32(path.read_bytes()) if path.exists() else 0


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
        raise ValueError(
            f"{path} is damaged: {error}; move {path.parent} away and run the stage again"
        ) from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise ValueError(f"{path} is no manifest of distill_jax: it has no format number")
    checksums.check_format(path, manifest["format"])
    if not checksums.is_signed(manifest):
        raise ValueError(
            f"{path} is damaged: its checksum is wrong; {_again(path.parent)} (if you changed it "
            'by hand, take its line "checksum" out)'
        )
    manifest.pop("checksum", None)
    stage, place = manifest.get("stage"), path.parent.parent.name
    if path.parent.name == "final" and re.match(r"s\d+_", place) and stage != place:
        raise ValueError(
            f"{path} is that of stage {stage}, not of {place}: another stage's final/ was put "
            "there; move it away and run the stage again"
        )
    return manifest


def load_params(
    directory: epath.PathLike, like: Tree, name: str = "params", dtype: str | None = None
) -> Tree:
    """The parameters of a final/ in the structure and shardings of `like`, in their own types.

    Args:
      directory: final/.
      like: a tree of jax.ShapeDtypeStruct, whose types do not matter.
      name: "params", or "fake" for those of the fake network.
      dtype: of those with more than one axis, converted as they are read; None keeps theirs.

    Raises:
      ValueError: when a file is damaged, or they are not those that the manifest is about.
    """
    directory = absolute(directory)
    path = directory / name
    advice = _again(directory)
    checksums.read(path)  # On every process, for it refuses a newer format.
    fault = checksums.damage(path) if distributed.first() else None
    if distributed.agree(int(fault is not None)):
        raise ValueError(f"{path} is damaged ({fault or 'says the first process'}); {advice}")
    expected = read_manifest(directory).get(FINGERPRINTS[name])
    if expected not in (None, fingerprint(directory, name)):
        raise ValueError(f"{path} is not what {directory / 'manifest.json'} is about; {advice}")
    return trees.read(path, as_stored(directory, like, name, dtype), advice)


def as_stored(
    directory: epath.PathLike, like: Tree, name: str = "params", dtype: str | None = None
) -> Tree:
    """`like` with the types that `load_params` returns.

    Raises:
      ValueError: when those cannot be read.
    """
    directory = absolute(directory)
    try:
        there = trees.dtypes(directory / name)
    except Exception as error:  # The storage layers raise anything.
        raise ValueError(f"{directory / name} cannot be read; {_again(directory)}") from error

    def typed(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        kept = dtype if dtype and leaf.ndim > 1 else there.get(name_of(path), leaf.dtype)
        return leaf.update(dtype=kept)

    return jax.tree_util.tree_map_with_path(typed, like)


def _again(final: epath.Path) -> str:
    return f"move {final} away and run the stage again, or copy it anew from where it came"


def _in_background(seal: Callable[[], None]) -> ocp.options.AsyncOptions:
    """Arrays are written in the background; directories are made before that.

    Were they made in the background too, a save that cannot make one would leave Orbax's threads
    waiting for it: 300 s in which the process cannot end, and then warnings of what never ran.
    """
    return ocp.options.AsyncOptions(
        post_finalization_callback=seal, create_directories_asynchronously=False
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
def _writing(directory: epath.Path) -> Iterator[None]:
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


def _unnamed(path: epath.Path) -> epath.Path:
    """Where a checkpoint is before it gets its name; on buckets, which cannot rename, there."""
    temporary = path.parent / f"{path.name}{ocp.utils.TMP_DIR_SUFFIX}"
    return temporary if temporary.exists() else path
