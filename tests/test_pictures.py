import numpy as np
import pytest

from benchmarks import pictures
from tests.toys import ROOT

ROWS = ["w = 0", "w = 4"]
COLUMNS = ["0", "1", "2"]


@pytest.mark.parametrize(("side", "channels", "factor"), [(8, 1, 6), (30, 3, 1)])
def test_a_sheet_holds_every_image_enlarged_by_a_whole_factor_without_smoothing(
    side, channels, factor
):
    rng = np.random.default_rng(0)
    shape = (len(ROWS), len(COLUMNS), side, side, channels)
    panels = {f"panel {i}": rng.uniform(-1, 1, shape) for i in range(2)}
    sheet = np.asarray(pictures.sheet(panels, ROWS, COLUMNS))
    step = side * factor + pictures.GAP
    width = step * len(COLUMNS) + pictures.LETTER
    top, left = sheet.shape[0] - step * len(ROWS), sheet.shape[1] - width * len(panels)
    seen = np.full_like(sheet, 255)
    for i, x in enumerate(panels.values()):
        for j, k in np.ndindex(len(ROWS), len(COLUMNS)):
            large = np.rint(x[j, k] * 127.5 + 127.5).astype(np.uint8)
            large = large.repeat(factor, axis=0).repeat(factor, axis=1)
            y, z = top + step * j, left + width * i + step * k
            seen[y : y + len(large), z : z + len(large)] = large
    np.testing.assert_array_equal(sheet[top:, left:], seen[top:, left:])
    # Titles and names of columns are above every panel, names of rows to the left of every row.
    assert all(part.min() < 50 for part in np.split(sheet[:top, left:], len(panels), axis=1))
    assert all(part.min() < 50 for part in np.split(sheet[top:, :left], len(ROWS)))


def test_every_picture_is_shown_on_a_page_and_its_run_is_of_a_config():
    pages = "".join(path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")])
    found = {path.name for kind in ("png", "gif") for path in ROOT.glob(f"docs/*.{kind}")}
    assert found == set(map(pictures.file_of, pictures.PICTURES))
    for name, (config, _) in pictures.PICTURES.items():
        assert f"{pictures.file_of(name)})" in pages
        assert not config or (ROOT / "configs" / f"{config}.py").exists()
