"""Tests of the page that runs students in the browser."""

import importlib.util
import itertools
import json
import shutil
import subprocess

import jax
import numpy as np
import pytest
from etils import epath

from distill_jax.diffusion.noise import keys_of, noise_of, step_noise
from distill_jax.diffusion.pixels import to_uint8
from distill_jax.sampling.loading import load
from distill_jax.teachers import browser
from tests import forks
from tests.browser import DRAWN, served
from tests.test_commands import one_message
from tests.toys import ROOT

PAGE = ROOT / "distill_jax" / "teachers" / "web"


def test_the_noise_of_the_page_is_that_of_the_samplers():
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    script = (PAGE / "noise.js").read_text()
    script += "console.log(JSON.stringify(Array.from(Noise.of(4294967295, 3, 500, 3, 1))))"
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    found = np.array(json.loads(done.stdout)).reshape(3, 3, 500)
    k_z, k_sampler = jax.random.split(jax.random.key(2**32 - 1))
    first = noise_of(k_z, 0, 3, (500,))
    keys = keys_of(k_sampler, jax.numpy.arange(3))
    expected = [first, *(step_noise(keys, step, first) for step in (1, 2))]
    np.testing.assert_allclose(found, np.stack(expected, axis=1), rtol=3e-6, atol=1e-6)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """Returns a folder of onnxruntime-web's files, which npm downloads once."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("npm") / "runtime"
    try:
        browser.copy_runtime(epath.Path(folder), None)
    except ValueError as error:
        pytest.skip(str(error))
    return folder


def drawn(page):
    """Returns the pictures of each network, uint8 (pictures, h, w, 3), when all are drawn."""
    page.wait(DRAWN)
    found = page.evaluate(
        "facts.networks.map(({ canvases }) => canvases.map((c) => [c.height, c.width,"
        " Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)]))"
    )
    return [np.array([np.reshape(x, (h, w, 4))[..., :3] for h, w, x in each]) for each in found]


def same(found, network, *asked):
    """Checks that pictures are those that a network samples, to one grey level."""
    x = to_uint8(np.asarray(network.sample(*asked))).astype(int)
    assert np.abs(found - x).max() <= 1


@pytest.mark.skipif(
    importlib.util.find_spec("jax2onnx") is None, reason="the extra onnx is not installed"
)
@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_the_page_draws_the_pictures_of_teacher_and_student(name, runtime, open_page, tmp_path):
    out = tmp_path / "page"
    code, _, stderr = forks.run("distill_jax.demo", name, f"--out={out}", f"--runtime={runtime}")
    assert code == 0, stderr
    teacher, student = load(f"{name}_teacher"), load(name)
    label = [0, 1, 2, 3] if name == "digits" else "a red circle"
    with served(out) as address:
        page = open_page(address, 390)
        first = drawn(page)
        steps = teacher.trained.num_steps
        same(first[0], teacher, 0, 4, label, 2.0, steps)
        same(first[1], student, 0, 4, label, 2.0)
        page.evaluate("document.querySelector('#w').focus()")
        page.press("ArrowRight")
        page.choose("#steps", 1)  # The second of 1, 2, 4, ... steps.
        moved = drawn(page)
        assert np.abs(moved[1].astype(int) - first[1]).max() > 1
        same(moved[0], teacher, 0, 4, label, 2.25, 2)
        same(moved[1], student, 0, 4, label, 2.25)
        if name == "digits":
            page.click("input[value='7'] + span")
            label = 7
        else:
            for i, text in enumerate(["a cyan cross", "left of", "a purple square"], 1):
                page.choose(f".menu:nth-of-type({i})", text)
            label = "a cyan cross left of a purple square"
        page.click("#next")
        other = drawn(page)
        same(other[0], teacher, 1, 4, label, 2.25, 2)
        same(other[1], student, 1, 4, label, 2.25)
        calls = page.evaluate("facts.networks.map(({ caption }) => caption.textContent)")
        assert [text.partition(",")[0] for text in calls] == ["4 calls", "1 call"]
        for width in (390, 1440):
            page.resize(width)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.errors == []
        assert {url.startswith((address, "data:", "blob:")) for url in page.addresses} == {True}


def test_what_the_command_cannot_show_is_one_message(tmp_path):
    def message(*words):
        given = (*words, f"--out={tmp_path / 'page'}", f"--runtime={tmp_path}")
        return one_message(*forks.run("distill_jax.demo", *given))

    assert "shapes takes prompts, and digits takes 10 labels" in message("digits", "shapes")
    assert "--prompt is given, and the page has 10 labels" in message("digits", "--prompt=a")
    assert "has no ort.wasm.min.js; expected the folder dist of onnxru" in message("digits")
    (tmp_path / "page").mkdir()
    assert "choose the name of a new folder" in message("digits")
    assert not list(tmp_path.glob(".page*"))


def test_without_npm_or_with_other_bytes_there_is_one_message(tmp_path, monkeypatch):
    folders = (epath.Path(tmp_path) / str(i) for i in itertools.count())
    script = tmp_path / "npm"
    script.write_text('#!/bin/sh\ntouch "${6#*=}/a.tgz"\nexit $CODE\n')
    script.chmod(0o755)
    for code, expected in (("1", "npm pack onnxruntime-web@.* failed"), ("0", "not the package")):
        monkeypatch.setenv("CODE", code)
        monkeypatch.setattr(shutil, "which", lambda _: str(script))
        with pytest.raises(ValueError, match=rf"{expected}.*--runtime=DIR"):
            browser.copy_runtime(next(folders), None)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ValueError, match=r"there is no npm; install Node.js, or .*--runtime=DIR"):
        browser.copy_runtime(next(folders), None)
