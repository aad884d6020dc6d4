"""Profiler traces of chosen iterations, for xprof: operations and their times, per device."""

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

from distill_jax.runtime import logging
from distill_jax.runtime.options import shown
from distill_jax.training.loop import Call

Iterate = Callable[[Any, Any], tuple]


class Profile(NamedTuple):
    """The iterations to trace.

    Attributes:
      stage: name of the stage, "" for the first one that runs.
      first: number of finished iterations of the stage when the trace begins.
      last: number of finished iterations of the stage when the trace ends.
    """

    stage: str
    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> "Profile":
        """Parses FIRST:LAST or STAGE@FIRST:LAST; raises ValueError for anything else."""
        match = re.fullmatch(r"(?:(\w+)@)?(\d{1,10}):(\d{1,10})", text)
        if not match or int(match[2]) >= int(match[3]):
            raise ValueError(
                f"--profile is {shown(text)}; expected FIRST:LAST, such as 20:25 for the five "
                "iterations after the 20th, or STAGE@FIRST:LAST"
            )
        return cls(match[1] or "", int(match[2]), int(match[3]))

    def of(self, stages: Mapping[str, int], finished: Collection[str] = ()) -> "Profile | None":
        """Returns the profile with the name of its stage; None if that stage is finished.

        Args:
          stages: number of iterations by stage name, in the order of the run.
          finished: names of stages that will not run. They are no error, because the same command
            may continue a run whose stage was traced before.

        Raises:
          ValueError: when the stage is unknown, or has fewer iterations than `last`.
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
    """Yields a version of `iterate` that traces the iterations of a profile, in every process.

    The trace begins before the first call that continues after `first` iterations, and ends after
    the call that contains iteration `last`. Both ends wait for the device, so that the trace holds
    whole iterations. Results do not change.

    Args:
      profile: the iterations to trace; None traces nothing.
      iterate: function that runs the iterations of a call, (state, call) -> (state, metrics).
      directory: directory of the traces.
    """
    if profile is None:
        yield iterate
        return
    options = jax.profiler.ProfileOptions()
    options.session_id = f"{profile.stage}_{profile.first}_{profile.last}"
    if jax.process_count() > 1:  # Two processes on one machine would write the same file.
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
