"""Tests of single numbers and keys of a config: refused where they make no sense, by their name."""

import math
import re

import pytest

from distill_jax.config import stage
from distill_jax.run import plan
from distill_jax.runtime import app
from tests import fuzz
from tests.run.test_plan import RATES, TEACHER, config_of


def test_a_plan_warns_of_an_ema_that_keeps_the_first_weights(tmp_path):
    """After 300 updates with decay 0.9999 the EMA is 97 % of the weights that it began with."""

    def warnings(**rates):
        entry = stage("a", "diffusion", **{**RATES, "steps": 300, **rates})
        text = plan.show(plan.make(config_of(entry), tmp_path))
        return [line for line in text.splitlines() if line.startswith("warning: ")]

    (line,) = warnings(ema_decay=0.9999)
    assert "the EMA of s00_a keeps up to 97% of the weights" in line
    assert "ema_decay=0.985 or less" in line
    assert not warnings(ema_decay=0.985)
    (line,) = warnings(ema_decay=0.9999, steps=20_000)  # 0.9999^20000 = 0.135
    assert "keeps up to 14% of" in line
    assert "ema_decay=0.99977 or less" in line
    assert not warnings(ema_decay=0.9999, ema_ramp=0.05)  # It forgets the first weights.
    (line,) = warnings(warmup=1000)
    assert "the warm-up of s00_a does not end: it takes 1,000 iterations, and s00_a has 300" in line
    assert not warnings(warmup=300)


NUMBERS = {
    "decay of 1, which never trains": ({"ema_decay": 1.0}, "ema_decay is 1.0"),
    "decay that is 1 in float32": ({"ema_decay": 1 - 1e-9}, "ema_decay is 0.999999999"),
    "gradient ascent": ({"optimizer": {"clip_norm": -1.0}}, "optimizer.clip_norm is -1.0"),
    "a first update of NaN": ({"optimizer": {"b2": 1.0}}, "optimizer.b2 is 1.0"),
    "moments that are no number": ({"optimizer": {"b1": math.nan}}, "optimizer.b1 is nan"),
    "division by zero": ({"optimizer": {"eps": 0.0}}, "optimizer.eps is 0.0"),
    "no training": ({"learning_rate": 0.0}, "learning_rate is 0, and steps 2: nothing trains"),
    "endless steps": ({"learning_rate": math.inf}, "learning_rate is inf"),
    "rise instead of decay": ({"decay_to": 1e12}, "decay_to is 1000000000000.0"),
    "another name than the key's": ({"name": "b"}, "name is 'b'; expected 'a', as in its key"),
    "base of no adapters": ({"base": "runs/x"}, "base is 'runs/x', and neither"),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_number_of_a_stage_that_makes_no_sense_is_refused(kind, tmp_path):
    options, message = NUMBERS[kind]
    config = config_of(stage("a", "diffusion", **RATES))
    config.stages.s00_a.update(options)
    with pytest.raises(ValueError, match=re.escape(message)):
        plan.make(config, tmp_path)


KEYS = {
    "seed": [2**32, -1, 20261126051800, 10**20, 0.5, True],
    "keep": [0, -5],
    "evaluate": [{"w": (math.inf,), "num_samples": 10, "ancestral": ()}],
    "data": [{}, {"name": ["digits"]}, {"a": 1}],
    "model": [{"a": 1}, {"name": "mlp", "width": 0}, {"name": "mlp", "blocks": -1}],
    "schedule": [{"a": 1}, {"name": "cosine", "logsnr_min": math.nan}, {"name": ["cosine"]}],
    "stages": [{"s00_a": 5}, {"s00_a": None}, {"s00_a": "x"}, {"s00_a": {}}, 5],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k in KEYS for v in KEYS[k]])
def test_a_key_that_makes_no_sense_is_refused_by_its_name(key, value, tmp_path):
    config = fuzz.Case(config_of(TEACHER), (((key,), value),)).make()
    with pytest.raises((ValueError, KeyError)) as caught:
        plan.make(config, tmp_path)
    text = app.message(caught.value)
    assert app.is_message(caught.value)
    assert f"config.{key}" in text or "the name of the" in text
    assert "\n" not in text


def test_keys_of_several_types_are_one_message(tmp_path):
    config = fuzz.Case(config_of(TEACHER), ((("model", 1), 2),)).make()
    with pytest.raises(ValueError, match="a key of the config is no string: "):
        plan.make(config, tmp_path)


def test_eps_and_both_are_refused_where_the_schedule_does_not_fit_them(tmp_path):
    for head, schedule, why in (
        ("eps", "rectified_flow", "alpha(1) is 0; this head divides by it"),
        ("both", "karras", "this head needs 1 at all times"),
    ):
        config = config_of(TEACHER, parameterization=head, schedule__name=schedule)
        with pytest.raises(ValueError, match=re.escape(why)):
            plan.make(config, tmp_path)
