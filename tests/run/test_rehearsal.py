"""Tests that a run fails at its start for what only its end would need."""

import dataclasses

import jax
import pytest

from distill_jax.config import stage
from distill_jax.methods.progressive import Progressive
from distill_jax.run import plan
from distill_jax.run.rehearsal import needed_bytes, rehearse
from distill_jax.runtime.trees import traced
from tests import forks
from tests.run.test_plan import RATES, TEACHER, config_of
from tests.toys import TINY_CHAIN, smoke_config


@traced("num_steps", "w_range")
class BadLoss(Progressive):
    """A method of a user whose loss reads a condition that does not exist."""

    def loss(self, key, batch, nets):
        return batch.cond["depth"].mean(), {}


@dataclasses.dataclass(frozen=True)
class BadSampler:
    """A sampler that adds arrays of two shapes."""

    num_steps: int = 4
    takes = ()

    def __call__(self, key, denoiser, z, cond):
        return z + jax.numpy.zeros((3, 5, 7))


def test_the_presets_of_every_loss_are_rehearsed(tmp_path):
    for name in ("digits_guided", "digits_encoder", "digits_dmd2", "digits_boot", "mixture_sid"):
        rehearse(plan.make(smoke_config(name), tmp_path))


def test_a_loss_of_the_last_stage_fails_at_the_start(tmp_path):
    bad = stage("bad", "tests.run.test_rehearsal:BadLoss", num_steps=4, **RATES)
    run = plan.make(config_of(TEACHER, bad), tmp_path)
    with pytest.raises(KeyError, match="depth"):
        rehearse(run)


def test_a_sampler_fails_at_the_start(tmp_path):
    run = plan.make(config_of(TEACHER), tmp_path)
    (first,) = run.stages
    sampler = BadSampler()
    trained = first.trained._replace(sampler=sampler)
    stages = (dataclasses.replace(first, trained=trained),)
    with pytest.raises(ValueError, match="Incompatible shapes"):
        rehearse(dataclasses.replace(run, stages=stages))


def test_a_disk_without_room_for_the_states_is_one_message(tmp_path):
    config = config_of({**TEACHER, "steps": 10**9}, keep_every=1, save_every=1)
    with pytest.raises(
        ValueError, match=r"the run writes up to .* and .* are free; .*--norehearse"
    ):
        rehearse(plan.make(config, tmp_path))


def test_the_bytes_of_a_run_are_those_of_its_networks_and_states(tmp_path):
    config = config_of(TEACHER, stage("half", "progressive", num_steps=4, **RATES), save_every=1)
    run = plan.make(config, tmp_path)
    one = sum(4 * leaf.size for leaf in jax.tree.leaves(run.stages[0].shapes["student"]))
    # Both networks, and three states of parameters, two moments and EMA, or three of each stage.
    assert needed_bytes(run, run.stages) == pytest.approx((2 + 3 * 4) * one, rel=0.01)
    config.keep_states = True
    assert needed_bytes(run, run.stages) == pytest.approx((2 + 2 * 3 * 4) * one, rel=0.01)


def test_a_command_rehearses_before_it_trains(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(
        f"{TINY_CHAIN.replace('return config', 'config.keep_every = 1; return config')}"
    )
    flags = (
        f"--config={path}",
        f"--workdir={tmp_path}/w",
        "--config.stages.s00_teacher.steps=1000000000",
    )
    code, _, stderr = forks.run("distill_jax.main", *flags, "--config.save_every=1")
    assert code == 1
    assert "start anyway with --norehearse" in stderr
    assert not (tmp_path / "w" / "s00_teacher").exists()
