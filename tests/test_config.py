import pytest

from distill_jax.config import base, halvings, pipeline, smoke, stage
from distill_jax.runtime.config_file import load_file


def test_stages_are_named_in_the_order_they_run_in():
    stages = [stage(f"x{i}", "diffusion", steps=1, learning_rate=1.0) for i in range(12)]
    names = list(pipeline(*stages))
    assert names == [f"s{i:02d}_x{i}" for i in range(12)]
    assert names == sorted(names)


def test_halvings_go_down_to_the_last_with_their_own_iterations():
    rounds = halvings(8, 1, steps={"default": 5, 2: 7, 1: 9}, learning_rate=1.0, w_range=(0.0, 1.0))
    assert [r["method"]["num_steps"] for r in rounds] == [8, 4, 2, 1]
    assert [r["steps"] for r in rounds] == [5, 5, 7, 9]
    assert [r["name"] for r in rounds] == ["n0008", "n0004", "n0002", "n0001"]
    assert all(r["method"]["w_range"] == (0.0, 1.0) for r in rounds)


def test_halvings_need_no_default_where_every_round_is_named():
    rounds = halvings(4, 2, steps={4: 7, 2: 9}, learning_rate=1.0)
    assert [entry["steps"] for entry in rounds] == [7, 9]


def test_a_config_that_is_no_python_file_is_refused(tmp_path):
    (tmp_path / "sweep.txt").write_text("")
    with pytest.raises(ValueError, match=r"sweep.txt' is no Python file; expected FILE.py"):
        load_file(tmp_path / "sweep.txt")


def test_halvings_of_another_method_have_their_own_names_and_first_teacher():
    rounds = halvings(
        4, 1, steps=5, method="other", prefix="s", teacher="guided", learning_rate=1.0
    )
    assert [r["name"] for r in rounds] == ["s0004", "s0002", "s0001"]
    assert {r["method"]["name"] for r in rounds} == {"other"}
    assert [r["teacher"] for r in rounds] == ["guided", "", ""]


@pytest.mark.parametrize(("start", "end"), [(12, 5), (4, 8), (8, 0), (0, 0), (7, 1)])
def test_halvings_that_are_no_powers_of_two_apart_are_refused(start, end):
    with pytest.raises(ValueError, match=f"halvings from {start} to {end} steps"):
        halvings(start, end, steps=1, learning_rate=1.0)


def test_smoke_keeps_the_stages_and_leaves_the_full_size_alone():
    config = base()
    config.stages = pipeline(stage("a", "diffusion", steps=1000, learning_rate=1.0, warmup=50))
    small = smoke(config, width=8)
    assert list(small.stages) == list(config.stages)
    assert small.stages.s00_a.steps < config.stages.s00_a.steps == 1000
    assert small.model.width == 8
    assert "width" not in config.model


def test_halvings_name_what_is_missing():
    with pytest.raises(ValueError, match="factor is 1; expected a whole number from 2"):
        halvings(8, 1, steps=1, learning_rate=1.0, factor=1)
    with pytest.raises(ValueError, match=r'no iterations for \[4, 1\] and no "default"'):
        halvings(4, 1, steps={2: 7}, learning_rate=1.0)
