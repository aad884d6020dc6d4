"""Tests of runs that are killed, and still end with the same results."""

import os
import time

from benchmarks import faults, kill
from tests.toys import TINY_CHAIN


def wait_for(command, sign):
    while command.running() and not list(command.workdir.glob(sign)):
        time.sleep(0.002)
    assert command.running(), command.log(0).read_text()


def test_two_processes_that_lose_one_end_with_every_stage_and_bit_of_an_undisturbed_run(tmp_path):
    (tmp_path / "chain.py").write_text(TINY_CHAIN)
    flags, cache = [f"--config={tmp_path / 'chain.py'}"], os.environ["JAX_COMPILATION_CACHE_DIR"]
    undisturbed = kill.Command(tmp_path / "undisturbed", flags, 2, cache)
    kill.run_undisturbed(undisturbed)
    command = kill.Command(tmp_path / "disturbed", flags, 2, cache, patience=3)
    command.start()
    wait_for(command, "s00_teacher/states/2")
    assert command.signal("SIGTERM", 1)[0] == [143, 143]  # Both save if one gets the signal.
    command.start()
    wait_for(command, "s01_n0001/states/2*")
    done = kill.finished(command.workdir)
    assert done == {"s00_teacher"}
    assert command.signal("SIGKILL", 0)[0][0] == 137
    assert kill.finished(command.workdir) == done
    command.start()
    assert command.wait(100) == [0, 0]
    assert kill.compare(command.workdir, undisturbed.workdir, kill.Tally()) == 0


def test_a_kill_before_a_rename_and_a_power_cut_lose_nothing(tmp_path):
    bench = faults.Bench(tmp_path, every=10**6, seed=0)
    assert faults.renames(bench) == [True]
    assert faults.power_cut(bench) == [True]
