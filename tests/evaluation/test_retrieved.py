"""Tests of pictures with captions in a published network: retrieval, and what a codec loses."""

import numpy as np
import pytest

from distill_jax.data import DATASETS
from distill_jax.diffusion.pixels import normalise
from distill_jax.evaluation import definitions
from distill_jax.evaluation.protocols import make_evaluator
from distill_jax.sampling.codecs import PIXELS, Fitted, PatchPca
from tests import emoji


def test_test_pictures_are_found_as_often_as_the_report_says(small_file, tmp_path):
    data = {"name": "captioned_folder", "path": emoji.write_parts(tmp_path)["data.path"]}
    data["size"] = 64
    found, dataset = make_evaluator(data, "small"), DATASETS["captioned_folder"](data["path"], 64)
    test, prompts = dataset.images("test", 99), np.array(dataset.captions("test", 99), object)
    row = found.measure(test.x, prompts, None)
    assert row["retrieval"] == found.real_retrieval["test"]
    assert "retrieval" not in found.measure(test.x, None, None)
    assert found.with_codec(PIXELS) == {}

    x = normalise(dataset.images("train", 99).x)
    for channels, exact in ((0, True), (1, False)):
        kind = PatchPca(8, channels)
        floor = found.floor | found.with_codec(Fitted(kind, kind.fit(x), dataset.spec))
        same = floor["codec"] == pytest.approx(floor["test"], rel=1e-3)
        assert same == exact
    told = definitions.real({**found.summary(), "floor": floor})
    assert f"{floor['test']:.3g} between training and test images ({floor['codec']:.3g}" in told
    assert "of test images" in told.lower() and "after the codec" in told
