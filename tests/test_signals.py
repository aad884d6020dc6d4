"""Tests of a run whose output ends before it does: a closed terminal, a pipe to an ended reader."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from tests.toys import ROOT, TINY_CHAIN


@pytest.mark.parametrize(("kind", "number"), [("pty", signal.SIGHUP), ("pipe", signal.SIGINT)])
def test_a_run_saves_also_when_nobody_reads_its_output_any_more(tmp_path, kind, number):
    (tmp_path / "chain.py").write_text(TINY_CHAIN)
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "distill_jax.main", f"--config={tmp_path / 'chain.py'}"]
    command += [f"--workdir={workdir}", "--config.stages.s00_teacher.steps=1000000"]
    command += ["--config.save_every=1000000"]
    read, write = pty.openpty() if kind == "pty" else os.pipe()
    process = subprocess.Popen(command, cwd=ROOT, stdout=write, stderr=write)
    os.close(write)
    os.set_blocking(read, False)
    lines, end = workdir / "s00_teacher" / "scalars.jsonl", time.monotonic() + 60
    try:
        while not (lines.exists() and lines.read_text().count("\n") > 3):
            assert time.monotonic() < end and process.poll() is None
            with contextlib.suppress(BlockingIOError):
                os.read(read, 1 << 16)
            time.sleep(0.05)
        os.close(read)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    finally:
        process.kill()
    (state,) = (workdir / "s00_teacher" / "states").iterdir()
    assert int(state.name) > 3
