"""The resumable states of a stage, STAGE/states/STEP/, written in the background.

With several processes, all of them call every function in this file; see storage.checkpoint.
"""

import logging
from collections.abc import Callable

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, EveryNSteps, LatestN

from distill_jax.runtime import distributed, heartbeat
from distill_jax.runtime.files import absolute, flush, set_aside
from distill_jax.storage import checksums, trees
from distill_jax.storage.writing import check_room, guarded, in_background, share, unnamed
from distill_jax.typing import Tree


class _Manager(ocp.CheckpointManager):
    """Orbax's checkpoint manager without its check for preemption, which the run does itself.

    JAX makes all processes stop at the same count of checks. Orbax would check at each save with
    the iteration as the count, and the run's own checks would then miss the count of the stop.
    """

    def reached_preemption(self, step: int) -> bool:
        return False

    def _finalize_checkpoint(self, step: int) -> None:
        """Flushes the new state's name to the disk, before Orbax deletes older states."""
        super()._finalize_checkpoint(step)
        for folder in (self.directory, self.directory.parent, self.directory.parent.parent):
            flush(folder)
        heartbeat.beat()


class States:
    """The resumable states of one stage on disk.

    Args:
      directory: STAGE/states; created if absent.
      keep: number of newest states to keep; at least 2, so that a damaged state has a predecessor.
      keep_every: states at multiples of this iteration are never deleted; 0 for none.
    """

    def __init__(self, directory: epath.PathLike, keep: int = 2, keep_every: int = 0):
        self._directory = absolute(directory)
        self._stage, self._saving = self._directory.parent.name, 0
        policies = [LatestN(max(2, keep)), *([EveryNSteps(keep_every)] if keep_every else [])]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            lightweight_initialize=True,  # A state with damaged metadata must not raise here.
            async_options=in_background(self._write_listing),
        )
        self._manager = _Manager(self._directory, options=options)

    def steps(self) -> list[int]:
        """Returns the iterations of the saved states, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Tree, **parts: Tree | None) -> None:
        """Starts to write the state of iteration `step`, after the previous state is complete.

        It returns when the state is copied from the devices, and writes in the background.

        Args:
          step: the iteration.
          state: the state.
          **parts: trees to write beside it, by name, see `part`; None for none.
        """
        trees_of = {
            "state": state,
            **{name: tree for name, tree in parts.items() if tree is not None},
        }
        with guarded(self._directory):
            check_room(self._directory, share(trees_of))
            self._manager.wait_until_finished()
            self._saving = step
            items = {name: ocp.args.StandardSave(tree) for name, tree in trees_of.items()}
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def part(self, name: str, step: int, like: Tree) -> Tree | None:
        """Returns a tree that was written beside the state of `step`; None if there is none.

        `restore` has checked its files together with the state's.
        """
        directory = self._directory / str(step) / name
        if not distributed.broadcast_from_first(directory.exists()):
            return None
        return trees.read(directory, like, f"move {self._directory} away to begin the stage again")

    def restore(self, like: Tree, warn: Callable[[str], None] = logging.warning) -> Tree | None:
        """Restores the newest undamaged state; returns None if there is none.

        A damaged state is reported, renamed to `damaged_STEP`, and the state before it is used.

        Args:
          like: tree of jax.ShapeDtypeStruct with the shardings to restore to.
          warn: called with one line per damaged state.

        Raises:
          ValueError: if an undamaged state has another structure than `like`, is of another stage,
            or was written by a newer version.
        """
        while (step := distributed.broadcast_from_first(max(self.steps(), default=-1))) >= 0:
            directory = self._directory / str(step)
            stage = checksums.read(directory).get("stage", self._stage)
            if stage != self._stage:
                raise ValueError(
                    f"{directory} is a state of stage {stage}, not of {self._stage}: move it away, "
                    "and the one before it is used"
                )
            fault = checksums.verify(directory) if distributed.first() else None
            if not distributed.broadcast_from_first(int(fault is not None)):
                advice = f"move {self._directory} away to begin the stage again"
                return trees.read(directory / "state", like, advice)
            if distributed.first():
                aside = set_aside(directory, self._directory.parent / f"damaged_{step}")
                then = "using the one before it" if len(self.steps()) > 1 else "there is no other"
                warn(f"{directory}: damaged ({fault}); kept as {aside.name}, {then}")
            distributed.barrier("set aside")
            self._manager.reload()
        return None

    def close(self) -> None:
        """Waits until everything is on disk."""
        with guarded(self._directory):
            self._manager.wait_until_finished()
            self._manager.close()

    @staticmethod
    def delete(directory: epath.PathLike, keep_every: int = 0) -> None:
        """Deletes the states in a directory, but for those at multiples of `keep_every`.

        Only the first process deletes.
        """
        directory = absolute(directory)
        if not distributed.first() or not directory.exists():
            return
        for path in list(directory.iterdir()):
            number = int(path.name) if path.name.isdigit() else None
            if number is None or not keep_every or number % keep_every:
                path.rmtree() if path.is_dir() else path.unlink()

    def _write_listing(self) -> None:
        """Writes the checksums of a state before its rename; only the first process calls it."""
        checksums.write(unnamed(self._directory / str(self._saving)), self._stage)
