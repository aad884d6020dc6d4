"""Tests PyTorch's formats from file to final/; conversions of arrays have their own tests."""

import jax
import numpy as np
import pytest

from distill_jax.sampling.loading import load
from distill_jax.storage.weights import of_array
from distill_jax.teachers import TEACHERS, edm, writer
from tests.teachers.foreign import arrays
from tests.teachers.pickles import FLOAT, Stored, archive, dump, network, tensor

OPTIONS = {
    "img_resolution": 8,
    "img_channels": 3,
    "model_type": "SongUNet",
    "model_channels": 4,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
    "label_dim": 3,
}
STATE = {
    leaf.name: np.full(leaf.shape, i / 8, np.float32)
    for i, (_, leaf) in enumerate(edm.leaves(OPTIONS))
}


def pickled(folder, class_name="EDMPrecond", args=()):
    path = folder / "edm.pkl"
    described = network(STATE, class_name, _init_args=args, _init_kwargs=OPTIONS)
    path.write_bytes(dump({"ema": described}))
    return path


def test_a_pickle_of_edm_becomes_a_student(tmp_path):
    imported = TEACHERS["edm"](pickled(tmp_path), None)
    source = {"format": "edm", "file": "edm.pkl", "sha256": "0"}
    student = load(writer.write(imported, source, {"name": "none"}, tmp_path / "out"))
    stored = {name: of_array(array) for name, array in STATE.items()}
    expected = edm.convert("EDMPrecond", OPTIONS, stored)
    jax.tree.map(np.testing.assert_array_equal, student.params, arrays(expected.params))
    assert student.network_spec is expected.network_spec()
    assert (student.shape, student.num_classes) == ((8, 8, 3), 3)


def test_a_pickle_of_another_network_is_refused_by_its_class(tmp_path):
    with pytest.raises(ValueError, match="network is a VPPrecond; expected EDMPrecond"):
        TEACHERS["edm"](pickled(tmp_path, "VPPrecond"), None)
    with pytest.raises(ValueError, match=r"made with unnamed arguments \(8,\)"):
        TEACHERS["edm"](pickled(tmp_path, args=(8,)), None)


def test_a_state_dict_of_another_network_is_refused(tmp_path):
    weight = tensor(Stored("storage", FLOAT, "0", "cpu", 4), (2, 2))
    entries = {"data.pkl": dump({"fc.weight": weight}), "data/0": bytes(16)}
    with pytest.raises(ValueError, match="expected a diffusion model of openai/guided-diffusion"):
        TEACHERS["adm"](archive(tmp_path, entries), None)


@pytest.mark.parametrize("kind", ["edm", "adm"])
def test_a_config_for_a_file_that_describes_itself_is_refused(kind):
    with pytest.raises(ValueError, match="leave --config out"):
        TEACHERS[kind]("file", {"model": {"name": "mlp"}})
