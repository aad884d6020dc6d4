"""Traces of chosen iterations, for xprof: what ran on devices and hosts, and how long it took."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
from etils import epath

from distill_jax.runtime import logging
from distill_jax.training.loop import Cadence

Iterate = Callable[[Any, Any], tuple]


@dataclasses.dataclass(frozen=True)
class Profile:
    """Which iterations are traced.

    Attributes:
      stage: its name, "" for the first that runs.
      first: iterations of it that are done before.
      last: iterations of it that are done then.
    """

    stage: str
    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> "Profile":
        """FIRST:LAST or STAGE@FIRST:LAST; raises ValueError for anything else."""
        match = re.fullmatch(r"(?:(\w+)@)?(\d+):(\d+)", text)
        if not match or int(match[2]) >= int(match[3]):
            raise ValueError(
                f"--profile is {text!r}; expected FIRST:LAST, such as 20:25 for the five "
                "iterations after the 20th, or STAGE@FIRST:LAST"
            )
        return cls(match[1] or "", int(match[2]), int(match[3]))

    def of(self, stages: Mapping[str, int], finished: Collection[str] = ()) -> "Profile | None":
        """The same with the name of its stage; None where that is finished.

        Args:
          stages: iterations by name, in the order they run.
          finished: those that will not run; the same command may go on after a stage was traced.

        Raises:
          ValueError: when the stage is none of them, or has not so many iterations.
        """
        stage = self.stage or next((name for name in stages if name not in finished), "")
        if stage in finished or not stage:
            logging.say(f"--profile: {stage or 'every stage'} is finished, so nothing is traced")
            return None
        if stage not in stages:
            raise ValueError(
                f"--profile is for stage {stage!r}; expected one of {', '.join(stages)}"
            )
        if self.last > stages[stage]:
            if finished and not self.stage:
                logging.say(
                    f"--profile: {stage} has {stages[stage]} iterations, so nothing is traced"
                )
                return None
            raise ValueError(
                f"--profile is {self.first}:{self.last}, but {stage} has {stages[stage]} iterations"
            )
        return dataclasses.replace(self, stage=stage)


@contextlib.contextmanager
def tracing(
    profile: Profile | None, iterate: Iterate, cadence: Cadence, done: int, directory: epath.Path
) -> Iterator[Iterate]:
    """`iterate` that is traced in the iterations of a profile, by every process for itself.

    A trace begins before the call that does iteration first + 1 and ends after the one that does
    the last. The device is waited for at both ends, so it holds whole iterations; their results are
    what they would be.

    Args:
      profile: None traces nothing.
      iterate: the iterations of a call, (state, batches) -> (state, metrics).
      cadence: of its calls.
      done: iterations before the first of them.
      directory: where traces are written.
    """
    if profile is None:
        yield iterate
        return
    calls = _Traced(profile, iterate, cadence.ends(done), done, directory)
    if done >= profile.last:
        logging.say(f"{profile.stage}: iteration {profile.last} is done, so nothing is traced")
    try:
        yield calls
    finally:
        calls.end()


class _Traced:
    def __init__(
        self,
        profile: Profile,
        iterate: Iterate,
        ends: Iterator[int],
        done: int,
        directory: epath.Path,
    ):
        self._profile, self._iterate, self._directory = profile, iterate, directory
        self._ends, self._done, self._next, self._on = ends, done, done, False

    def __call__(self, state: Any, batches: Any) -> tuple:
        """One call of `iterate`."""
        self._done, self._next = self._next, next(self._ends)
        if not self._on and self._done < self._profile.last and self._next > self._profile.first:
            jax.block_until_ready(state)
            self._begin()
        state, metrics = self._iterate(state, batches)
        if self._next >= self._profile.last:
            jax.block_until_ready(state)
            self.end()
        return state, metrics

    def _begin(self) -> None:
        profile, options = self._profile, jax.profiler.ProfileOptions()
        options.session_id = f"{profile.stage}_{profile.first}_{profile.last}"
        if jax.process_count() > 1:  # Two on one machine would write the same file.
            options.session_id += f"_process_{jax.process_index()}"
        jax.profiler.start_trace(str(self._directory), profiler_options=options)
        self._on = True

    def end(self) -> None:
        """Writes the trace, if there is one."""
        if self._on:
            self._on = False
            jax.profiler.stop_trace()
            logging.say(f"wrote a trace; pip install xprof, then xprof --logdir={self._directory}")
