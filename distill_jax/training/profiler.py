"""Traces of chosen iterations, for xprof: what ran on devices and hosts, and how long it took."""

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

from distill_jax.runtime import logging
from distill_jax.training.loop import Call

Iterate = Callable[[Any, Any], tuple]


class Profile(NamedTuple):
    """Which iterations are traced.

    Attributes:
      stage: its name, "" for the first that runs.
      first: iterations of the stage that are done before the trace.
      last: iterations of the stage that are done after the trace.
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
        """The same profile with the name of its stage; None where the stage is finished.

        Args:
          stages: iterations by name, in the order they run.
          finished: those that will not run; the same command may go on after a stage was traced.

        Raises:
          ValueError: when the stage is none of them, or has not so many iterations.
        """
        stage = self.stage or next((name for name in stages if name not in finished), "")
        if stage and stage not in stages:
            raise ValueError(
                f"--profile is for stage {stage!r}; expected one of {', '.join(stages)}"
            )
        if stage in finished or not stage:
            reason = f"{stage or 'every stage'} is finished"
        elif self.last > stages[stage]:
            reason = f"{stage} has {stages[stage]} iterations"
            if self.stage or not finished:
                raise ValueError(f"--profile is {self.first}:{self.last}, but {reason}")
        else:
            return self._replace(stage=stage)
        logging.say(f"--profile: {reason}, so nothing is traced")
        return None


@contextlib.contextmanager
def tracing(profile: Profile | None, iterate: Iterate, directory: epath.Path) -> Iterator[Iterate]:
    """`iterate` that is traced in the iterations of a profile, by every process for itself.

    A trace begins before the first call that goes on after `first` iterations and ends after the
    one that does the last. The device is waited for at both ends, so it holds whole iterations;
    their results are what they would be.

    Args:
      profile: None traces nothing.
      iterate: the iterations of a call, (state, call) -> (state, metrics).
      directory: where traces are written.
    """
    if profile is None:
        yield iterate
        return
    options = jax.profiler.ProfileOptions()
    options.session_id = f"{profile.stage}_{profile.first}_{profile.last}"
    if jax.process_count() > 1:  # Two on one machine would write the same file.
        options.session_id += f"_process_{jax.process_index()}"
    message = f"wrote a trace; pip install xprof, then xprof --logdir={directory}"
    trace, begun = contextlib.ExitStack(), False

    def traced(state: Any, call: Call) -> tuple:
        nonlocal begun
        start, stop = call.iterations.start, call.iterations.stop
        if not begun and profile.first < stop and start < profile.last:
            begun = True
            jax.block_until_ready(state)
            trace.callback(logging.say, message)
            trace.enter_context(jax.profiler.trace(str(directory), profiler_options=options))
        state, metrics = iterate(state, call)
        if begun and stop >= profile.last:
            jax.block_until_ready(state)
            trace.close()
        return state, metrics

    with trace:
        yield traced
    if not begun:
        logging.say(f"{profile.stage}: iteration {profile.last} was done, so nothing is traced")
