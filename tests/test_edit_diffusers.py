"""Tests of edits by UNets of Stable Diffusion on latents, also by one that inpaints.

One workdir has an autoencoder, a text encoder and the stages of a chain, with random weights.
"""

import dataclasses

import numpy as np
import pytest
from etils import epath
from PIL import Image

import distill_jax
from distill_jax.data import DATASETS
from distill_jax.diffusion.inpainting import with_inpainting
from distill_jax.diffusion.spec import DataSpec, Leaf, image_data
from distill_jax.diffusion.trained import Ddim, Encode, Guidance, Trained
from distill_jax.models.build import abstract_params, make_network
from distill_jax.run.fits import codec_fit
from distill_jax.sampling.codecs import Fitted, PatchPca
from distill_jax.sampling.manifest import Lineage, Manifest, Reference
from distill_jax.sampling.prompts import WordEncoder
from distill_jax.storage import checkpoint
from tests.sampling.test_autoencoder import write
from tests.test_commands import one_message, run
from tests.toys import filled

DATA = {"name": "shapes", "count": 64, "tests": 64}
WORDS = {"width": 8, "layers": 1, "heads": 1, "length": 10, "updates": 1}
KNOWN = ("a", "above", "below", "blue", "circle", "cross", "cyan", "red", "square")
TEXT = ("text", Leaf((10, 8))), ("text_mask", Leaf((10,), "bool"))
LATENTS = DataSpec(Leaf((4, 4, 4)), False, TEXT)
UNET = {"name": "sd_unet", "widths": (8,), "blocks": 1, "transformers": (), "heads": (1,)}
STAGES = {
    "s00_guided": (Trained(Ddim(4), Guidance((0.0, 14.0)), True), LATENTS),
    "s01_e0002": (Trained(Encode(2), Guidance((0.0, 14.0)), False), LATENTS),
    "s02_n0002": (Trained(Ddim(2), Guidance((2.0, 14.0)), False), LATENTS),
    "s03_inpaint": (Trained(Ddim(2), Guidance((2.0, 14.0)), False), with_inpainting(LATENTS)),
}
PROMPT = "--prompt=a blue square"
X = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
TOP = np.zeros((16, 16), np.float32)
TOP[:6] = 1


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = epath.Path(tmp_path_factory.mktemp("sd"))
    write(folder / "pipeline" / "vae")
    options = {"name": "autoencoder", "path": str(folder / "pipeline")}
    codec_fit(options, folder, DATASETS["noise"](size=16, count=16)).finish()
    words = filled(WordEncoder(**WORDS).shapes(KNOWN))
    described = {"conditioner": {"name": "words", **WORDS}, "words": KNOWN}
    checkpoint.save_final(folder / "conditioner" / "final", words, described)
    parts = {
        name: Reference(f"../../{name}/final", checkpoint.fingerprint(folder / name / "final"))
        for name in ("codec", "conditioner")
    }
    for name, (trained, spec) in STAGES.items():
        manifest = Manifest(
            stage=name,
            trained=trained,
            distilled=True,
            spec=spec,
            model={**UNET, "groups": 4},
            schedule={"name": "ddpm", "beta_min": 0.00085, "beta_max": 0.012, "power": 2},
            parameterization="v",
            data=DATA,
            lineage=Lineage({"name": "progressive"}),
            **parts,
        )
        content = manifest.to_json()
        params = filled(abstract_params(make_network(content, spec), ("w",)), 0.1)
        checkpoint.save_final(folder / name / "final", params, content)
    return folder


@pytest.fixture(scope="module")
def inpaints(workdir):
    """Returns the network that inpaints, with a codec whose latents tell more of an image."""
    kind = PatchPca(patch=4, channels=4)
    codec = Fitted(kind, kind.fit(X), image_data((16, 16, 3), 0))
    return dataclasses.replace(distill_jax.load(workdir / "s03_inpaint"), codec=codec)


@pytest.mark.parametrize(
    ("task", "stage", "flags"),
    [
        ("img2img", "s02_n0002", ["--strength=0.5", PROMPT]),
        ("inpaint", "s02_n0002", ["--mask=top", PROMPT]),
        ("inpaint", "s03_inpaint", ["--mask=top", PROMPT]),
        ("style", "s02_n0002", ["--encoder=s01_e0002", PROMPT]),
    ],
)
def test_a_command_edits_with_a_unet_of_stable_diffusion(task, stage, flags, workdir, tmp_path):
    flags = [flag.replace("=s01", f"={workdir}/s01") for flag in flags]
    out = tmp_path / "out.png"
    code, _, stderr = run(
        "edit", task, f"--student={workdir / stage}", "--num=2", "--w=7", f"--out={out}", *flags
    )
    assert code == 0, stderr
    rows = 3 if task == "inpaint" else 2
    with Image.open(out) as picture:
        assert picture.size == (2 * 50, rows * 50)
        facts = picture.info
    assert (facts["prompt"], facts["w"], facts["steps"]) == ("a blue square", "7.0", "2")


def test_images_of_another_size_are_one_message(workdir, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 24, 24, 3), np.float32))
    flags = f"--student={workdir / 's03_inpaint'}", f"--images={tmp_path / 'x.npy'}", PROMPT
    stderr = one_message(*run("edit", "inpaint", *flags))
    assert "images are of shape (24, 24, 3); this network was trained on (16, 16, 3)" in stderr


def test_a_network_that_inpaints_draws_from_text_and_an_image(inpaints):
    drawn = inpaints.sample(3, 2, "a red circle", 7.0)
    whole = inpaints.inpaint(3, X, np.ones((16, 16)), "a red circle", 7.0)
    np.testing.assert_allclose(whole, drawn, atol=1e-5)
    top = np.asarray(inpaints.inpaint(3, X, TOP, "a red circle", 7.0))
    np.testing.assert_array_equal(top[:, 6:], X[:, 6:])
    hidden = np.where(TOP[..., None] > 0, 0.7, X)  # It makes no difference.
    np.testing.assert_array_equal(inpaints.inpaint(3, hidden, TOP, "a red circle", 7.0), top)
    other = np.asarray(inpaints.inpaint(3, -X, TOP, "a red circle", 7.0))
    assert np.abs(other[:, :6] - top[:, :6]).max() > 1e-3  # The known part is a condition.
    assert np.abs(np.asarray(drawn)[:, :6] - top[:, :6]).max() > 1e-3


def test_a_mask_of_each_image_is_that_of_the_image_alone(inpaints):
    masks = np.stack([TOP, 1 - TOP])[..., None]
    both = np.asarray(inpaints.inpaint(3, X, masks, "a red circle", 7.0))
    one = np.asarray(inpaints.inpaint(3, X, TOP, "a red circle", 7.0))
    np.testing.assert_allclose(both[0], one[0], atol=1e-5)
    np.testing.assert_array_equal(both[1, :6], X[1, :6])


def test_arguments_that_do_not_fit_are_one_message(workdir, inpaints):
    masked = inpaints.with_masked(X, TOP)
    other = dataclasses.replace(inpaints, manifest=distill_jax.load(workdir / "s02_n0002").manifest)
    for call, message in (
        (lambda: inpaints.inpaint(0, X, TOP[:8], "a"), r"mask is of shape \(8, 16\)"),
        (lambda: inpaints.inpaint(0, X[:, :8], TOP[:8], "a"), "this network was trained on"),
        (lambda: masked.sample(0, 3, "a"), "3 images of a network with 2 masked images"),
        (lambda: other.with_masked(X, TOP), "s02_n0002 takes no masked image; call inpaint"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
