"""Tests the command line on a google_research state and on files that it must refuse."""

import numpy as np
import pytest
from PIL import Image

from distill_jax.sampling.loading import load
from tests.teachers.pickles import FLOAT, Call, Stored, archive, dump, tensor
from tests.teachers.test_adm import UNCONDITIONAL, state_of
from tests.teachers.test_formats import pickled
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


def test_a_training_checkpoint_lists_its_entries_and_then_takes_key_and_set(tmp_path):
    """Two flags complete the description of a network of one's own, with the prefix of DDP."""
    arrays, items, entries = {}, {}, {"byteorder": b"little"}
    for i, (name, leaf) in enumerate(state_of(UNCONDITIONAL).items()):
        array = arrays[name] = leaf.read(())
        stored = Stored("storage", FLOAT, str(i), "cpu", int(array.size))
        items[f"module.{name}"] = tensor(stored, tuple(map(int, array.shape)))
        entries[f"data/{i}"] = np.ascontiguousarray(array, "<f4").tobytes()
    optimizer = {"state": {}, "param_groups": []}
    pickled = dump({"model": items, "ema": items, "opt": optimizer, "step": 7})
    path, out = archive(tmp_path, {"data.pkl": pickled, **entries}), f"--out={tmp_path / 'out'}"
    listed = one_message(*run("teachers", "adm", str(path), out))
    assert "model (144 arrays), ema (144 arrays), opt (a dict of 2), step (int)" in listed
    assert "--key=ema" in listed
    asked = one_message(*run("teachers", "adm", str(path), out, "--key=ema", "--set", "side=8"))
    assert "--set heads=4 --set split_first=false --set schedule=ddpm" in asked
    flags = [f"--set={fact}" for fact in ("side=8", "heads=4", "split_first=false")]
    code, _, stderr = run(
        "teachers", "adm", str(path), out, "--key=ema", *flags, "--set=schedule=ddpm"
    )
    assert code == 0, stderr
    student = load(tmp_path / "out")
    assert (student.shape, student.manifest.model["heads"]) == ((8, 8, 3), 4)
    source = student.manifest.lineage.source
    assert source["path"] == str(path)
    assert source["given"] == {
        "side": 8,
        "heads": 4,
        "split_first": False,
        "schedule": "ddpm",
        "key": "ema",
    }
    kernel = student.params["unet"]["output"]["kernel"]
    np.testing.assert_array_equal(kernel, arrays["out.2.weight"][:3].transpose(2, 3, 1, 0))


def test_a_format_of_ones_own_takes_no_values_that_it_does_not_name(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(b"x")
    result = run("teachers", "examples.my_teacher:npz", str(path), "--out=o", "--set=a=1")
    assert "takes no --set and no --key" in one_message(*result)


def test_an_import_of_edm_says_that_students_of_sid_look_alike(tmp_path):
    flags = ("edm", str(pickled(tmp_path)), f"--out={tmp_path / 'out'}")
    code, stdout, stderr = run("teachers", *flags)
    assert code == 0, stderr
    assert "read as a teacher; a one-call student of SiD has" in stdout
