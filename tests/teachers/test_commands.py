"""Tests the command line on a google_research state and on files that it must refuse."""

import pytest
from PIL import Image

from tests.teachers.pickles import Call, dump
from tests.teachers.toys import MLP, config_of, params_of, save
from tests.test_commands import one_message, run

CONFIG = """
from distill_jax.config import base

def get_config():
    config = base()
    config.data.update(name="noise", size=4, channels=1, num_classes=3, count=16)
    config.model.update(name="mlp", width=8, blocks=1)
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a state, its config, and the imported network."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "config.py").write_text(CONFIG)
    save(folder / "state", params_of(config_of(MLP)))
    flags = (f"--config={folder / 'config.py'}", f"--out={folder / 'out'}")
    code, stdout, stderr = run("teachers", "google_research", str(folder / "state"), *flags)
    assert code == 0, stderr
    assert f"check {folder / 'out'}" in stdout
    return folder


def test_check_prints_the_network_tries_it_and_draws_a_grid(folder):
    code, stdout, stderr = run("teachers", "check", str(folder / "out"), "--num=6", "--num_steps=2")
    assert code == 0, stderr
    for line in (
        "network          mlp: blocks 1, width 8",
        "images           4x4x1, 3 classes",
        "parameterization v",
        "schedule         Cosine(logsnr_min=-20.0, logsnr_max=20.0)",
        "steps            1,024; trained at all times",
        "guidance         impossible: it was trained without label dropout",
        "finite; z = alpha x + sigma eps to",
        "| (16, 8) | float32 | 128  |",  # The kernel of the first layer.
        "Total: ",
    ):
        assert line in stdout
    with Image.open(folder / "out" / "grid.png") as image:
        assert image.size == (6 * 50, 50)


def test_a_hostile_pickle_ends_in_one_message_and_nothing_is_written(tmp_path):
    path = tmp_path / "net.pkl"
    path.write_bytes(dump({"ema": Call("os", "system", f"touch {tmp_path / 'trap'}")}))
    result = run("teachers", "edm", str(path), f"--out={tmp_path / 'out'}")
    assert "it names os.system" in one_message(*result)
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.pkl"]


def test_an_unknown_format_is_one_message_with_the_known_ones(tmp_path):
    result = run("teachers", "googel_research", str(tmp_path), f"--out={tmp_path / 'out'}")
    assert "did you mean 'google_research'" in one_message(*result)
