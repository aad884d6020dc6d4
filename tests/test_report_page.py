"""Tests of report.html in a browser, at the widths of a phone and of a desktop."""

import json
import shutil

import pytest

from distill_jax.evaluation import plots
from tests.test_commands import run

VISIBLE = "[...document.querySelectorAll('{}')].filter((e) => e.getBoundingClientRect().width > 0)"
PICTURE = "[...document.querySelectorAll('#explorer .strip')].map((e) => e.getAttribute('style'))"


@pytest.mark.parametrize("width", [390, 1440])
def test_curves_and_pictures_are_visible_and_the_sliders_move_them(chain, open_page, width):
    page = open_page(chain / "report.html", width)
    page.wait("document.body.dataset.ready === 'yes' && document.querySelector('.loss svg')")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    rows = json.loads((chain / "report.json").read_text())["rows"]
    seen = {
        kind: page.evaluate(f"{VISIBLE.format(kind)}.length")
        for kind in ("#by-steps .line", ".loss svg")
    }
    assert seen == {"#by-steps .line": 2 * len({row["w"] for row in rows}), ".loss svg": 8}
    first = "[data-host=same_noise]"
    assert page.evaluate(f"{VISIBLE.format(first + ' .strip')}.length") == 5
    assert page.evaluate(f"{VISIBLE.format(first + ' .cell')}.length") == 50
    names = page.evaluate(
        f"[...document.querySelectorAll('{first} strong')].map((e) => e.textContent)"
    )
    assert names == [
        "teacher, 64 steps, 128 calls",
        "teacher, 1 step, 2 calls",
        *("student, 4 steps", "student, 2 steps", "student, 1 step"),
    ]
    before, curves = (
        page.evaluate(PICTURE),
        page.evaluate("document.getElementById('by-w').innerHTML"),
    )
    page.click("#n")  # The middle of the slider: another number of steps.
    after = page.evaluate(PICTURE)
    assert after[0] == before[0] and after[1:] != before[1:]
    assert page.evaluate("document.getElementById('by-w').innerHTML") != curves
    page.evaluate("document.getElementById('w').focus()")
    page.press("End")
    assert page.evaluate("document.querySelector('label[for=w]').textContent").endswith("w = 4")
    assert "w = 4" in page.evaluate("document.querySelector('#explorer .name').textContent")
    assert page.errors == []
    assert [address for address in page.addresses if not address.startswith("data:")] == [
        (chain / "report.html").as_uri()
    ]


def test_values_near_zero_lie_at_the_end_of_the_axis(chain, open_page, tmp_path):
    workdir = shutil.copytree(chain, tmp_path / "digits")
    code, _, stderr = run("report", workdir, f"--out={tmp_path / 'page.html'}")
    assert code == 0, stderr
    page = open_page(tmp_path / "page.html", 1440)
    page.wait("document.body.dataset.ready === 'yes'")
    page.evaluate("DATA.rows[0].values['FD-digits'] = 1e-12, refresh()")
    low = page.evaluate("DATA.measures[0].low")
    assert low > 10 ** -(plots.DECADES + 1)
    places = (
        "[...document.querySelectorAll('#by-steps .mark')].map((e) => e.getAttribute('transform'))"
    )
    heights = [float(place.rstrip(")").split()[1]) for place in page.evaluate(places)]
    assert heights and all(0 <= y <= 320 for y in heights)
    assert page.errors == []


def test_seeds_are_drawn_with_error_bars(chain, open_page, tmp_path):
    folders = [shutil.copytree(chain, tmp_path / f"seed_{i}") for i in range(2)]
    config = json.loads((folders[1] / "config.json").read_text())
    (folders[1] / "config.json").write_text(json.dumps({**config, "seed": 1}))
    out = tmp_path / "both.html"
    code, stdout, stderr = run("report", *folders, f"--out={out}", "--w=2")
    assert code == 0, stderr
    assert "seed_0 (2 seeds)" in stdout and "| config.seed | 0 " in stdout
    page = open_page(out, 390)
    page.wait("document.body.dataset.ready === 'yes'")
    page.evaluate("DATA.rows.forEach((row) => (row.errors['FD-digits'] = 1)), refresh()")
    assert page.evaluate("document.querySelectorAll('#by-steps .error').length") == 56
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.errors == []
