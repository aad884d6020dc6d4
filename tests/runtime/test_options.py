"""Tests of the rules of options, and that every option of every table has a type and a range."""

import dataclasses
import inspect
import math
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from distill_jax.config import base, stage
from distill_jax.data import DATASETS
from distill_jax.data.masks import MASKS
from distill_jax.diffusion.schedule import SCHEDULES
from distill_jax.diffusion.trained import SAMPLERS
from distill_jax.methods import METHODS
from distill_jax.models import NETWORKS
from distill_jax.run import validation
from distill_jax.runtime.options import (
    ANYTHING,
    OptionError,
    check,
    check_arguments,
    check_options,
    choice,
    every,
    number,
    option,
    optional,
    rules_of,
    shown,
    typed,
    whole,
    within,
)
from distill_jax.runtime.registry import build
from distill_jax.sampling.codecs import CODECS
from distill_jax.sampling.prompts import CONDITIONERS
from distill_jax.training.update import optimizer

TABLES = {
    "method": METHODS,
    "network": NETWORKS,
    "dataset": DATASETS,
    "schedule": SCHEDULES,
    "sampler": SAMPLERS,
    "codec": CODECS,
    "conditioner": CONDITIONERS,
    "masks": MASKS,
    "optimizer": {"adam": optimizer},
}
NOT_NUMBERS = (math.nan, math.inf, -math.inf, None, True, False, "3", [], [1.0], {}, 10**5000, 3j)


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=lambda value: shown(value))
def test_what_is_no_number_breaks_every_rule_of_numbers_without_another_error(value):
    for rule in (number(0), number(-9, 9), whole(0), whole(1, 2), typed(float), typed(int)):
        assert not rule.allows(value)
        with pytest.raises(OptionError, match=r"^x is .*; expected a"):
            check("x", value, rule)


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (int, [3, np.int32(3)], [3.0, True, "3"]),
        (float, [3, 0.5, np.float32(0.5)], [True, "3", math.nan]),
        (bool, [True, False], [0, 1, None, "no"]),
        (str, ["", "a"], [None, b"a", 3]),
        (int | None, [None, 3], ["", 0.5]),
        (tuple[int, ...], [(), (1, 2), [1]], [(1.5,), "12", 3]),
        (tuple[str, float], [("a", 1.0)], [("a",), ("a", "b"), ("a", 1.0, 2.0)]),
        (tuple[int | float, ...], [(1, 2.5)], [(True,), (math.nan,)]),
        (tuple, [(), [1, "a"]], ["ab", {}, 3]),
        (Literal["a", "b"], ["a"], ["c", None, 1, ["a"]]),
        (Annotated[int, whole(2, high=4)], [2, 4], [1, 5, 3.0, "3"]),
        (Annotated[float, number(0, 1, without=(1,))], [0, 0.5], [1, -0.1, math.nan]),
        (dict[str, int], [{}], [[], 3]),
        (Any, [3, None, "a"], []),
        ("Unknown", [3, None], []),
    ],
)
def test_an_annotation_is_a_rule(annotation, good, bad):
    rule = typed(annotation)
    assert all(map(rule.allows, good))
    assert not any(map(rule.allows, bad))


def test_rules_are_said_in_words():
    rules = number(0, 1, without=(0,)), whole(2, high=4096), optional(whole(4, 2)), every(number(0))
    assert [rule.expected for rule in rules] == [
        "a number above 0 to 1",
        "a whole number from 2 to 4,096",
        "None or a multiple of 2 from 4",
        "a tuple of at most 100 values, each a number from 0",
    ]


@dataclasses.dataclass(frozen=True)
class Options:
    side: int = option(whole(1, high=8), 2)
    name: str = option(choice(("a", "b")), "a")
    flag: bool = True


def test_a_field_has_the_rule_of_its_type_and_its_own():
    check_options(Options(3, "b", False))
    for bad, key in ((Options(9), "side"), (Options(2, "c"), "name"), (Options(flag=1), "flag")):
        with pytest.raises(OptionError, match=f"^{key} is "):
            check_options(bad)


def test_the_key_of_a_message_is_the_whole_path():
    path = r"^config.model.side is 9; expected a whole number from"
    with pytest.raises(OptionError, match=path), within("config"), within("model"):
        check_arguments(Options, {"side": 9})


@pytest.mark.parametrize("value", [0, 9, 2.0, True, None, math.nan, "2", [2]])
def test_the_registry_checks_before_it_builds(value):
    built = []
    table = {"options": lambda side: built.append(side)}
    table["options"].__annotations__["side"] = Annotated[int, whole(1, high=8)]
    with pytest.raises(OptionError, match="^side is .*; expected a whole number from 1 to 8"):
        build(table, "thing", {"name": "options", "side": value})
    assert not built


@pytest.mark.parametrize("name", [None, 3, [], {}, math.nan])
def test_a_name_that_is_no_string_is_refused(name):
    for spec in ({"name": name}, {"a": 1}):
        with pytest.raises(KeyError, match="the name of the thing is .*; expected one of b, c"):
            build({"b": dict, "c": dict}, "thing", spec)


def test_a_value_is_shown_in_one_short_line():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("a\n" * 1000, 10**5000, deep, np.zeros((50, 50))):
        assert len(shown(value)) <= 100
        assert "\n" not in shown(value)


@pytest.mark.parametrize("kind", TABLES)
def test_every_option_has_a_type_and_every_number_a_range(kind):
    """No option of a table takes NaN, infinity, or a number of a million millions."""
    for name, entry in TABLES[kind].items():
        for key, rule in rules_of(entry).items():
            if key == "spec":
                continue
            assert rule is not ANYTHING, (name, key)
            for value in (math.nan, math.inf, 10**12, -(10**12), 1e12, {}, object()):
                assert not rule.allows(value), (name, key, value)
            taken = [rule.allows(value) for value in (True, 1, "x", None, (1, 2))]
            assert sum(taken) < 3, (name, key)


@pytest.mark.parametrize("kind", TABLES)
def test_every_default_satisfies_its_rule(kind):
    for entry in TABLES[kind].values():
        for key, parameter in inspect.signature(entry).parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                check(key, parameter.default, rules_of(entry)[key])


def test_every_number_of_a_config_and_a_stage_has_a_range():
    own = base().to_dict()
    rest = {key for key in own if key not in validation.RULES}
    assert all(isinstance(own[key], (str, bool, dict)) for key in rest)
    assert own["evaluate"].keys() == validation.RULES_OF_EVALUATE.keys()
    assert own["optimizer"].keys() == rules_of(optimizer).keys()
    entry = stage("a", "diffusion", steps=1, learning_rate=1e-3)
    rest = {key for key, value in entry.items() if key not in validation.RULES_OF_STAGES}
    assert all(isinstance(entry[key], (str, bool, dict)) for key in rest)
