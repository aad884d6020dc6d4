import numpy as np
import PIL.Image
import pytest
from etils import epath

from distill_jax.data import DATASETS, Source
from distill_jax.data.arrays import Arrays
from distill_jax.diffusion.analytic import ring
from distill_jax.evaluation import definitions, pictures, report, story
from distill_jax.evaluation.protocols import ImageEvaluator, make_evaluator

MIXTURE = {"name": "mixture", "count": 8000}


@pytest.fixture(scope="module")
def points():
    return make_evaluator(MIXTURE)


def drawn(label, seed=5):
    """Returns new points of the mixture."""
    return ring().sample(np.random.default_rng(seed), label).reshape(-1, 1, 1, 2)


def test_real_points_have_distances_near_zero_and_recall_near_one(points):
    found = points.summary()
    assert list(found) == [
        "name",
        "definition",
        "reference",
        "floor",
        "real_recall",
        "real_accuracy",
        "rotation_accuracy",
        "real_retrieval",
    ]
    assert found["name"] == "SW2"
    assert found["reference"] == {"dataset": "mixture", "images": len(points._real), "weights": ""}
    assert found["real_accuracy"] is None
    assert max(found["floor"].values()) < 0.04  # Due to random shares of the modes.
    assert found["real_recall"] > 0.95


def test_points_are_compared_class_by_class(points):
    label = np.arange(4000) % 4
    x = drawn(label)
    row = points.measure(x, label, None)
    assert list(row) == ["SW2", "SW2 worst class", "recall", "diversity"]
    assert row["SW2"] < row["SW2 worst class"] < 0.04
    # With permuted labels the points still match all data, but no class.
    wrong = points.measure(x, (label + 1) % 4, None)
    assert wrong["SW2"] > 0.2
    assert wrong["recall"] == row["recall"] > 0.95
    assert points.measure(x, None, None)["SW2"] < 0.04


def test_a_class_that_collapses_shows_in_the_worst_class(points):
    label = np.arange(4000) % 4
    x = drawn(label)
    x[label == 2] = x[label == 2][:1]
    row = points.measure(x, label, x)
    assert row["SW2 worst class"] > 0.2 > row["SW2"] > 0.05
    assert row["l2"] == 0


def test_half_of_the_plane_recalls_half_of_the_data(points):
    label = np.arange(4000) % 4
    x = drawn(label)
    x[..., 0] = abs(x[..., 0])
    assert 0.45 < points.measure(x, label, None)["recall"] < 0.6


def test_without_labels_the_summary_has_the_accuracy_on_quarter_turns(optimized):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 100, (240, 8, 8, 1))
    x[:, :2] += 100  # Brighter at the top: every turn looks different.
    x, label = x.astype(np.uint8), np.zeros(240, np.int32)
    train, test = Source(x[:200], label[:200]), Source(x[200:], label[200:])
    found = ImageEvaluator(Arrays(train, test, 0, 1), "FD-tops").summary()
    assert found["real_accuracy"] is None
    assert found["rotation_accuracy"] > 0.9
    text = definitions.real(found)
    assert f"is right about {found['rotation_accuracy']:.3f} of test images (chance is 0.25" in text


def row_of(sampler, num_steps, w, **more):
    row = {
        "role": sampler.split(",")[0],
        "sampler": sampler,
        "stage": "s00_a",
        "num_steps": num_steps,
        "w": w,
        "SW2": 0.1 * num_steps,
        **more,
    }
    return {**row, "calls": num_steps, "seconds_per_image": 0.01 * num_steps}


ROWS = [
    row_of("teacher", 64, 0.0, l2=0.0),
    row_of("student, boot", 1, 0.0, l2=0.2),
    row_of("student, swd", 2, 0.5),
]


def test_headlines_compare_only_rows_that_were_measured():
    (text,) = story.headlines("SW2", ROWS)
    assert text == (
        "w = 0: the student (boot) has SW2 0.1 in 1 call. The teacher has 6.4 in 64 calls "
        "(64x the time)."
    )
    few = row_of("teacher", 1, 0.0)
    (text,) = story.headlines("SW2", [*ROWS[:2], few])
    assert text.endswith("The teacher has 6.4 in 64 calls (64x the time), and 0.1 in 1 call.")
    # The student's number of steps is the teacher's own.
    (text,) = story.headlines("SW2", [few, ROWS[1]])
    assert text.endswith("SW2 0.1 in 1 call. The teacher has 0.1 in 1 call.")
    # The teacher has no row at this w.
    (text,) = story.headlines("SW2", [ROWS[0], ROWS[2]])
    assert text == "w = 0.5: the student (swd) has SW2 0.2 in 2 calls."
    # Two stages of one method, such as DMD2 without and with its GAN.
    rows = [{**ROWS[2], "stage": stage} for stage in ("s01_dmd2", "s02_gan")]
    first, second = story.headlines("SW2", [ROWS[0], *rows])
    assert first.startswith("w = 0.5: the student (swd, s01_dmd2) has ")
    assert second.startswith("w = 0.5: the student (swd, s02_gan) has ")


def test_a_report_of_points_is_drawn_and_written(points, tmp_path):
    many = [row_of(f"student, {i}", 1, 0.0) for i in range(9)]  # More than there are styles.
    content = {**points.summary(), "rows": ROWS + many, "made_of": {"num_samples": 5}}
    report.write(epath.Path(tmp_path), content)
    text = (tmp_path / "report.md").read_text()
    assert "SW2: sliced Wasserstein-2 distance" in text
    assert "quarter turns" not in text
    assert (tmp_path / "report.html").read_text().endswith("</html>\n")
    with PIL.Image.open(tmp_path / "report.png") as image:
        assert image.size[0] > 500


def test_a_scatter_has_a_panel_for_every_title_and_all_classes_in_it(tmp_path):
    label = np.arange(400) % 4
    x = drawn(label).reshape(-1, 2)
    for count in (1, 2):
        path = epath.Path(tmp_path / f"{count}.png")
        pictures.save_scatter(path, {f"w = {i}": x for i in range(count)}, label, x)
        with PIL.Image.open(path) as file:
            image = np.asarray(file.convert("RGB"))
        assert image.shape == (440, 440 * count, 3)
        hues = {tuple(pixel) for pixel in image.reshape(-1, 3) if np.ptp(pixel) > 100}
        assert len(hues) >= 4


def test_a_published_network_measures_samples_of_the_data_as_the_data(small_file):
    evaluator = make_evaluator({"name": "digits"}, "small")
    found = evaluator.summary()
    assert found["name"] == "FD-small"
    assert found["definition"].startswith("FD-small: Frechet distance to 1,437 training images in")
    assert found["floor"]["halves"] > 0
    assert found["real_accuracy"] > 0.6
    digits = DATASETS["digits"]().images("test", 300)
    row = evaluator.measure(digits.x, digits.label, digits.x)
    assert row["FD-small"] < 3 * found["floor"]["test"]
    assert row["FD-small-to-teacher"] == pytest.approx(0, abs=1e-6)
    assert row["accuracy"] > 0.6
    assert min(row["precision"], row["recall"]) > 0.6
    noise = np.random.default_rng(0).uniform(-1, 1, digits.x.shape).astype(np.float32)
    worse = evaluator.measure(noise, digits.label, None)
    assert worse["FD-small"] > 10 * row["FD-small"]
    assert worse["MIND-small"] > 10 * row["MIND-small"]
    assert worse["precision"] == 0
    text = definitions.protocol(found["name"], 300, found["definition"])
    assert "resize bicubic, uint8), 300 samples, classes in turn." in text
