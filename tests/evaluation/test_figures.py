import io
import math

import numpy as np
import pytest

from distill_jax.evaluation import figures

NAMES = ("FD-digits", "FD-digits-to-teacher", "l2")


def row_of(sampler, num_steps, w, *values, name="FD-digits"):
    """Returns a row with the distance, and the given ones of the other two."""
    calls = num_steps * (2 if sampler.startswith("teacher") else 1)
    names = (name, f"{name}-to-teacher", "l2")
    found = dict(zip(names, values, strict=False))
    return {
        "role": sampler.split(",")[0],
        "sampler": sampler,
        "num_steps": num_steps,
        "w": w,
        "calls": calls,
        **found,
    }


def chain(samplers, strengths, counts):
    """Returns rows of all samplers, w and step counts; the teacher's first has one distance."""
    return [
        row_of(sampler, n, w, *((w + 8 / n, (w + 1) / n, 0.4 / n)[: 1 if alone else 3]))
        for w in strengths
        for sampler in samplers
        for n in counts
        for alone in [sampler == "teacher" and n == counts[0]]
    ]


POWERS = (64, 32, 16, 8, 4, 2, 1)
MANY = ("teacher", "teacher, ancestral", "student", "student, stochastic", "student, sid_lsg")
NAN = math.nan
ROWS = {
    "guided": chain(("teacher", "student"), (0.0, 1.0, 2.0, 4.0), POWERS),
    "many samplers": chain(MANY, (0.0, 1.0, 4.0), POWERS),
    "many numbers of steps": chain(("teacher", "student"), (0.0,), [2**i for i in range(14)][::-1]),
    "one number of steps": chain(("teacher", "student"), (0.0, 1.0), (4,)),
    "two percent": [row_of("teacher", 8, 0.0, 41.1), row_of("student", 4, 0.0, 40.3, 0.31, 0.3)],
    "nan": [row_of("teacher", 4, 0.0, 0.5), row_of("student", 4, 0.0, NAN, NAN, NAN)],
    "nan only": [row_of("student", 1, 0.0, NAN, math.inf, NAN)],
    "teacher only": [row_of("teacher", n, 0.0, 0.5 + 1 / n) for n in (64, 1)],
}


def drawn(rows, name="FD-digits"):
    """Draws the figure, where a warning is an error, and returns it with its panels."""
    figure = figures.quality({"name": name, "rows": rows, "floor": {"halves": 0.42}})
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    return figure, figure.axes


def texts_of(axis):
    return [axis.get_title(loc="left"), *(text.get_text() for text in axis.texts)]


def labels_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("kind", ROWS)
def test_every_axis_has_numbers_and_holds_every_value(kind):
    _, axes = drawn(ROWS[kind])
    for axis, measure in zip(axes, NAMES, strict=False):
        for one, least in ((axis.yaxis, 3), (axis.xaxis, 1)):
            low, high = one.get_view_interval()
            inside = [low <= place <= high for place in one.get_majorticklocs()]
            shown = [label.get_text() for label in one.get_majorticklabels()]
            assert all(inside)
            assert all(shown)
            assert len(set(shown)) >= least
        values = [row[measure] for row in ROWS[kind] if math.isfinite(row.get(measure, NAN))]
        low, high = axis.get_ylim()
        assert all(low < value < high for value in values)
        assert axis.get_ylabel() == f"{measure} (lower is better)"


@pytest.mark.parametrize("high", [1.02, 1.3, 3.0, 9.0, 70.0, 1e4, 1e9])
@pytest.mark.parametrize("low", [1.01e-6, 0.0983, 0.5, 7.7])
def test_a_range_of_any_size_has_at_least_three_ticks_within(low, high):
    found = figures.ticks(low, low * high)
    assert len(found) >= 3
    assert low <= found[0]
    assert found[-1] <= low * high
    assert len({f"{tick:g}" for tick in found}) == len(found)


def test_numbers_of_steps_are_labelled_as_long_as_there_is_room():
    _, axes = drawn(ROWS["guided"])
    assert [label.get_text() for label in axes[0].get_xticklabels()] == [
        str(n) for n in POWERS[::-1]
    ]
    assert figures._apart([2**i for i in range(14)]) == [2**i for i in range(14)]
    kept = np.array(figures._apart(range(1, 1000)))
    assert len(kept) <= 17
    assert (kept[1:] / kept[:-1] > 1.5).all()


def test_a_distance_that_is_rounding_is_neither_drawn_nor_sets_the_axis():
    rows = ROWS["guided"]
    rounding = [{**row, "FD-digits-to-teacher": 1.9e-10, "l2": 0.0} for row in rows[:1]]
    for with_rounding, without in zip(drawn(rounding + rows[1:])[1], drawn(rows)[1], strict=True):
        assert with_rounding.get_ylim() == without.get_ylim()
        for line, same in zip(with_rounding.lines, without.lines, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), same.get_ydata())
    # Without larger distances to the teacher there is no panel about it.
    assert len(drawn(rounding)[1]) == 1


def test_the_words_of_a_panel_say_what_it_measures():
    first, second, third = (texts_of(axis) for axis in drawn(ROWS["guided"])[1])
    assert first[0] == "FD-digits: distance to the data"
    assert "Frechet distance to the training images" in first[1]
    assert "0.42 apart" in first[1]
    assert "w > 0" in first[1]
    assert second[0] == "FD-digits-to-teacher: distance to the teacher"
    assert "teacher in 64 steps" in second[1]
    assert "root mean square" in third[1]
    assert "w > 0" not in texts_of(drawn(ROWS["nan"])[1][0])[1]


def test_values_that_cannot_be_drawn_are_counted():
    _, axes = drawn(ROWS["nan"])
    assert len(axes) == 1  # There is no distance to the teacher.
    assert texts_of(axes[0])[1].endswith("not finite, and not drawn: 1 of 2")


def test_points_have_their_own_words():
    rows = [
        row_of("teacher", 256, 0.0, 0.0139, name="SW2"),
        {**row_of("student, sid_lsg", 1, 0.0, 0.0167, name="SW2"), "l2": 0.4},
    ]
    _, axes = drawn(rows, "SW2")
    assert [axis.get_ylabel().split()[0] for axis in axes] == ["SW2", "l2"]
    assert "sliced Wasserstein-2" in texts_of(axes[0])[1]


def test_the_style_shows_the_sampler_and_the_colour_shows_w():
    figure, axes = drawn(ROWS["many samplers"])
    for axis in axes:
        lines = np.array(axis.lines).reshape(3, len(MANY))
        assert len({line.get_color().tobytes() for line in lines[:, 0]}) == 3
        for same_w in lines:
            assert len({line.get_color().tobytes() for line in same_w}) == 1
            looks = [(line.get_linestyle(), line.get_marker()) for line in same_w]
            assert len(set(looks)) == len(MANY)
            solid = [line.get_markerfacecolor() is line.get_color() for line in same_w]
            assert [style == "-" for style, _ in looks] == solid == [False] * 2 + [True] * 3
    assert labels_of(figure) == [
        "teacher (2 network calls a step)",
        "teacher, ancestral (2 network calls a step)",
        "student",
        "student, sid_lsg",
        "student, stochastic",
        "w = 0",
        "w = 1",
        "w = 4",
    ]
