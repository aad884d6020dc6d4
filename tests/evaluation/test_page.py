"""Tests of the page of a report: its text, its numbers and its pictures."""

import json
import re

import numpy as np
import pytest
from etils import epath

from distill_jax.data import decoding
from distill_jax.evaluation import finished, gallery, page, plots, story, versus
from distill_jax.evaluation.records import of_config


def row_of(sampler, num_steps, w, distance, stage="s01_a", **more):
    return {
        "role": sampler.split(",")[0],
        "sampler": sampler,
        "stage": stage,
        "num_steps": num_steps,
        "w": w,
        "FD-digits": distance,
        "calls": num_steps,
        "seconds_per_image": 0.002 * num_steps,
        **more,
    }


ROWS = [
    row_of("teacher", 64, 2.0, 0.5, "s00_teacher"),
    row_of("teacher", 1, 2.0, 9.0, "s00_teacher"),
    row_of("student", 8, 2.0, 0.6),
    row_of("student", 2, 2.0, 0.7),
    row_of("student", 1, 2.0, 1.0),
    row_of("student", 1, 4.0, 2.0),
]


def run_of(name, rows=ROWS, seed=0, **config):
    stages = {"s00_teacher": {"steps": 5, "method": {"name": "diffusion"}, "teacher": ""}}
    record = of_config({"seed": seed, "stages": stages, **config}, name)
    content = {"name": "FD-digits", "rows": rows, "floor": {"halves": 0.4, "test": 0.4}}
    return finished.Finished(name, content, record, {}, [], {})


def test_text_from_outside_is_no_html_and_ends_no_script():
    bad = "</script><script>alert('x')</script>"
    parts = [page.Part(bad, f"{bad}\n\n* {bad}\n* a\n\n| a |\n| - |\n| {bad} |")]
    text = page.render(bad, parts, {"a": bad})
    assert text.count("<script") == text.count("</script>") == 2
    assert json.loads(re.search(r'id="data">(.*)</script>', text)[1]) == {"a": bad}
    assert "Content-Security-Policy" in text
    assert text.endswith(page.END)


def test_markdown_becomes_html():
    text = (
        "a `b` [c](https://d.e)\nf\n\n* g\n* h\n\n1. i\n\n### j\n\n| k | l |\n| - | - |\n| m | - |"
    )
    assert page.as_html(text).splitlines() == [
        '<p>a <code>b</code> <a href="https://d.e">c</a> f</p>',
        "<ul><li>g</li><li>h</li></ul>",
        "<ol><li>i</li></ol>",
        "<h3>j</h3>",
        '<div class="scroll" tabindex="0" role="region" aria-label="table"><table><thead><tr>'
        '<th scope="col">k</th><th scope="col">l</th></tr></thead>'
        "<tbody><tr><td>m</td><td>-</td></tr></tbody></table></div>",
    ]


def test_a_value_near_zero_does_not_squash_a_logarithmic_axis():
    axis = plots.span([1.9e-10, 0.5, 20.0], log=True)
    assert axis["log"] and axis["low"] > 0.001 and axis["high"] > 20
    assert plots.span([0.5, 20.0], log=True)["low"] == pytest.approx(0.5 / (40**0.05))
    linear = plots.span([-3.0, 1.0], log=False)
    assert not linear["log"] and linear["low"] < -3 < 1 < linear["high"]
    assert plots.span([0.0, 0.0], log=True)["high"] > 0


def test_the_first_picture_has_the_teacher_in_all_steps_and_one_and_students_of_few():
    shown = [(row["sampler"], row["num_steps"]) for row in gallery.chosen(ROWS)]
    assert shown == [("teacher", 64), ("teacher", 1), ("student", 2), ("student", 1)]
    many = [ROWS[0], *(row_of("student", n, 2.0, 1.0) for n in (32, 16, 8))]
    assert [row["num_steps"] for row in gallery.chosen(many)] == [64, 32, 16, 8]
    assert gallery.strength(ROWS) == 2
    assert gallery.strength(ROWS[-1:]) == 4


def test_stages_with_the_same_sampler_are_told_apart():
    rows = [row_of("student, sid", 1, 0.0, 1.0, stage) for stage in ("s01_a", "s02_b")]
    assert story.names(rows) == ["student, sid, s01_a", "student, sid, s02_b"]
    assert story.names(ROWS) == [row["sampler"] for row in ROWS]
    assert story.label(ROWS[0]) == "teacher, 64 steps"
    assert story.label({**rows[0], "calls": 2}) == "student (sid), 1 step, 2 calls"


def test_runs_that_differ_in_the_seed_are_one_group_with_mean_and_deviation():
    other = [{**row, "FD-digits": row["FD-digits"] + 0.2} for row in ROWS]
    runs = [run_of("a_0"), run_of("a_1", other, seed=1), run_of("b", batch_size=8)]
    groups = versus.grouped(runs)
    assert {name: len(same) for name, same in groups.items()} == {"a_0 (2 seeds)": 2, "b": 1}
    data = plots.data(groups)
    mine = [row for row in data["rows"] if row["group"] == 0]
    assert [row["values"]["FD-digits"] for row in mine] == pytest.approx(
        [row["FD-digits"] + 0.1 for row in ROWS]
    )
    assert mine[0]["errors"]["FD-digits"] == pytest.approx(0.2 / np.sqrt(2))
    assert [row["errors"]["FD-digits"] for row in data["rows"] if row["group"] == 1] == [None] * 6
    table = versus.side_by_side(runs, [4.0]).splitlines()
    assert [cell.strip() for cell in table[2].strip("|").split("|")] == [
        *("student", "1", "4", "FD-digits", "2.1 ± 0.14", "2")
    ]
    assert len(table) == 2 + 2  # The distance and the time of one row.


def test_the_differences_of_configs_are_named_and_a_stage_of_one_is_one_line():
    first, second = run_of("a", batch_size=8).record, run_of("b", model={"name": "dit"}).record
    stage = {"steps": 5, "method": {"name": "sid_lsg"}, "teacher": ""}
    stages = {**first.options["stages"], "s01_sid": stage}
    third = of_config({**first.options, "stages": stages}, "c")
    assert versus.differences([first, second, third]) == [
        ("config.batch_size", "8", "-", "8"),
        ("config.model.name", "-", '"dit"', "-"),
        ("config.stages.s01_sid", "-", "-", '"sid_lsg"'),
    ]


@pytest.mark.parametrize(("side", "suffix", "stored"), [(8, ".png", 8), (300, ".webp", 192)])
def test_a_strip_has_the_first_samples_and_large_ones_are_reduced(tmp_path, side, suffix, stored):
    grey = np.linspace(-1, 1, 12, dtype=np.float32).reshape(-1, 1, 1, 1)
    x = np.broadcast_to(grey, (12, side, side, 3))
    gallery.keep(epath.Path(tmp_path), ROWS[0], x, None)
    (path,) = (tmp_path / gallery.FOLDER).iterdir()
    assert path.name == f"s00_teacher-teacher_0064_w2{suffix}"
    pixels = decoding.decode(path.read_bytes(), path.name)
    assert pixels.shape == (stored, 10 * stored, 3)
    middle = pixels[stored // 2, stored // 2 :: stored, 0]
    np.testing.assert_allclose(middle, (grey[:10].ravel() + 1) * 127.5, atol=4)
    strips = gallery.read(epath.Path(tmp_path), ROWS)
    assert list(strips) == ["s00_teacher-teacher_0064_w2"]
    picture = gallery.same_noise(ROWS, strips, [str(i) for i in range(10)])
    assert picture.width > 10 * max(48, stored)
    assert gallery.same_noise(ROWS, {}, []) is None


def test_samples_that_are_no_pictures_have_no_strip(tmp_path):
    gallery.keep(epath.Path(tmp_path), ROWS[0], np.zeros((3, 4, 4, 8), np.float32), None)
    gallery.keep(epath.Path(tmp_path), ROWS[1], np.full((3, 4, 4, 1), np.nan, np.float32), None)
    assert len(list((tmp_path / gallery.FOLDER).iterdir())) == 1
