"""Images with captions are measured as the published code does; see models/pretrained/make.py."""

import hashlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from distill_jax.evaluation import feature_networks, text_scores
from distill_jax.evaluation.feature_networks import load_network
from distill_jax.evaluation.text_protocols import (
    FAMILIES,
    distances,
    for_clip,
    prepared,
    read_captions,
)
from distill_jax.evaluation.text_protocols import text_scores as measured
from distill_jax.evaluation.text_scores import load_scorer
from distill_jax.models.clip import MEAN, STD
from distill_jax.models.clip_files import read_clip
from distill_jax.storage import safetensors
from distill_jax.storage.weights import of_array
from tests import forks
from tests.models.pretrained import IMAGE, NEW, picture, vocabulary, weights
from tests.models.pretrained.directories import RECORDED, write

TOKENS, MERGES = vocabulary()
SIZES = ((30, 21), (21, 21), (40, 64), (33, 50), (21, 30), (90, 25))
CAPTIONS = ["the", "that then", "a &amp; b", "", "they're 12", "the " * 30]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP of both towers, whose tokenizer has the numbers of its table."""
    folder = tmp_path_factory.mktemp("clip")
    sizes = {"vocab_size": len(TOKENS), "max_position_embeddings": 30}
    text = {**NEW, **sizes, "eos_token_id": len(TOKENS) - 1}
    config = {"text_config": text, "vision_config": IMAGE, "projection_dim": 10}
    shapes = json.loads(str(RECORDED["text_names"])) | json.loads(str(RECORDED["image_names"]))
    for name, size in zip(("token", "position"), sizes.values(), strict=True):
        shapes[f"text_model.embeddings.{name}_embedding.weight"] = (size, 16)
    shapes["logit_scale"] = ()
    state = {key: of_array(weights(key, tuple(shape))) for key, shape in shapes.items()}
    state["logit_scale"] = of_array(np.asarray(math.log(50), np.float32))
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.write(folder / "model.safetensors", state)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS)}))
    (folder / "merges.txt").write_text("\n".join(MERGES))
    return folder


@pytest.fixture
def images(tmp_path):
    """A folder of pictures of six sizes whose names are numbers, and their captions."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, size in enumerate(SIZES):
        Image.fromarray(picture(*size)).save(folder / f"{5 * i}.png")
    file = tmp_path / "captions.txt"
    file.write_text("\n".join(CAPTIONS) + "\n")
    return folder, file


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(text_scores, "BATCH", 4)
    monkeypatch.setattr(feature_networks, "BATCH", 4)


def test_captions_are_those_of_the_pictures_in_the_order_of_their_numbers(images):
    folder, file = images
    given = read_captions(*images)
    assert given.names == [f"{n}.png" for n in (0, 5, 10, 15, 20, 25)]
    assert given.captions == CAPTIONS
    assert given.source == f"captions.txt@{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}"
    rows = file.with_suffix(".jsonl")
    rows.write_text(
        '{"file_name": "10.png", "text": "a cat"}\n\n{"file_name": "0.png", "text": ""}'
    )
    assert read_captions(folder, rows)[1:3] == (["10.png", "0.png"], ["a cat", ""])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"one\ntwo", "has 6 pictures and .*a.txt 2 captions; expected one line for each"),
        ("a.txt", b"\xff\xfe", "cannot be read as captions .UnicodeDecodeError"),
        ("a.jsonl", b"{}", "cannot be read as captions .KeyError: 'file_name'"),
        ("a.jsonl", b"[1", "cannot be read as captions .JSONDecodeError"),
        ("a.jsonl", b'{"file_name": "0.png", "text": 3}', "a file_name or text is no string"),
        (
            "a.jsonl",
            b'{"file_name": "../7.png", "text": ""}',
            "lacks 1 of the .*such as '../7.png'",
        ),
        ("a.jsonl", b"", "has no captions"),
    ],
)
def test_captions_that_do_not_fit_are_refused(images, name, content, message):
    file = images[1].parent / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_captions(images[0], file)


@pytest.mark.parametrize("name", ["gigagan", "dmd2"])
def test_families_take_the_central_square_and_lanczos_to_256(name):
    x = picture(300, 407)
    left = round(107 / 2)
    square = Image.fromarray(x[:, left : left + 300])
    expected = np.asarray(square.resize((256, 256), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(prepared(x, FAMILIES[name]), expected)


def test_gigagan_loses_a_level_of_dark_pixels_on_the_way_through_float32():
    levels = np.arange(256, dtype=np.uint8)
    x = np.broadcast_to(levels[:, None, None], (256, 256, 3))
    found, direct = (for_clip(x, FAMILIES[name], 256) for name in ("gigagan", "dmd2"))
    np.testing.assert_array_equal(direct, x)
    floats = (levels.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    expected = ((floats + np.float32(1)) * np.float32(127.5)).astype(np.uint8)
    np.testing.assert_array_equal(found[:, 0, 0], expected)
    assert (expected != levels).sum() == 63


def test_the_training_of_sid_lsg_resizes_for_clip_by_pytorch():
    found = for_clip(picture(256, 256), FAMILIES["sid_lsg_training"], 224)
    expected = RECORDED["torch_bicubic"].transpose(0, 2, 1)
    # PyTorch has float32 positions of pixels.
    np.testing.assert_allclose([found[70], found[:, 40]], expected, atol=1e-2)


@pytest.mark.parametrize("shape", [(30, 64), (64, 30), (33, 33)])
def test_plain_images_are_resized_by_their_shorter_side_and_cropped(shape):
    x = picture(*shape)
    size = tuple(21 * side // min(shape) for side in reversed(shape))
    whole = np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BICUBIC))
    top, left = (round((side - 21) / 2) for side in whole.shape[:2])
    expected = whole[top : top + 21, left : left + 21]
    np.testing.assert_array_equal(for_clip(x, FAMILIES["plain"], 21), expected)


def test_clip_score_is_a_hundred_times_the_cosine_of_the_towers(images, clip_folder):
    scorer = load_scorer("clip", clip_folder)
    scores, notes = measured(read_captions(*images), "dmd2", [scorer])
    clip = read_clip(clip_folder)
    (image, of_image), (text, of_text) = clip.image(), clip.text()
    pixels = np.stack(
        [for_clip(picture(*size), FAMILIES["dmd2"], 21).astype(np.float32) for size in SIZES]
    )
    captions = [f"A photo depicts {text}" for text in (*CAPTIONS[:2], "a & b", *CAPTIONS[3:])]
    ids, _ = scorer.tokenizer(captions)
    with jax.default_matmul_precision("highest"):
        shown = jnp.asarray((pixels / 255 - np.float32(MEAN)) / np.float32(STD))
        a = np.asarray(jax.jit(image.apply)(of_image, shown))
        b = np.asarray(jax.jit(text.apply)(of_text, jnp.asarray(ids)).embeds)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    each = 100 * np.maximum(cosines, 0)
    score = scores["CLIP score"]
    assert score.value == pytest.approx(each.mean(), abs=1e-3)
    assert score.error == pytest.approx(each.std() / math.sqrt(6), rel=1e-3)
    for part in (
        "family dmd2",
        "prefix 'A photo depicts '",
        "n 6",
        "100 max(cos, 0)",
        "captions.txt@",
    ):
        assert part in score.protocol
    assert f"model.safetensors@{clip_digest(clip_folder)}" in score.protocol
    assert "of 30,000 captions, and this one is of 6 and of ViT-g/14" in score.remark
    assert [note.split(" has ")[0] for note in notes] == [f"the prompt {CAPTIONS[-1][:80]!r}..."]


def clip_digest(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:8]


def test_pickscore_is_the_scaled_cosine_and_takes_images_and_captions_as_they_are(
    images, clip_folder
):
    scorers = [load_scorer(name, clip_folder) for name in ("clip", "pickscore")]
    given = read_captions(*images)
    scores, _ = measured(given, "gigagan", scorers)
    plain, _ = measured(given, "plain", scorers)
    assert scores["PickScore"] == plain["PickScore"]
    assert scores["CLIP score"].value != plain["CLIP score"].value
    embeddings = np.eye(2, 10, dtype=np.float32)
    found = scorers[1].scores(embeddings, np.stack([embeddings[0], -embeddings[1]]))
    np.testing.assert_allclose(found, [50, -50], rtol=1e-6)
    np.testing.assert_allclose(scorers[0].scores(embeddings, -embeddings), 0)


def test_hpsv2_needs_its_own_weights(clip_folder):
    with pytest.raises(ValueError, match=r"has no weights of HPSv2: HPS_v2.1_compressed.pt"):
        load_scorer("hpsv2", clip_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logit_scale": None}, "logit_scale is nan; expected a number from -5 to 5"),
        ({"logit_scale": 99.0}, "logit_scale is 99.0; expected a number from -5 to 5"),
        ({"text_projection.weight": None}, "has not both towers of a CLIP with projections"),
    ],
)
def test_networks_that_are_no_whole_clip_are_refused(tmp_path, clip_folder, change, message):
    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = safetensors.read(clip_folder / "model.safetensors")
    for name, value in change.items():
        del state[name]
        if value is not None:
            state[name] = of_array(np.asarray(value, np.float32))
    safetensors.write(tmp_path / "model.safetensors", state)
    with pytest.raises(ValueError, match=message):
        load_scorer("clip", tmp_path)


def test_a_tokenizer_with_more_tokens_than_the_network_is_refused(tmp_path, clip_folder):
    shapes = {"text_config": NEW, "vision_config": IMAGE, "projection_dim": 10}
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes())
    write(tmp_path, shapes, "text_names")
    state = dict(safetensors.read(tmp_path / "model.safetensors"))
    state |= {
        key: leaf
        for key, leaf in safetensors.read(clip_folder / "model.safetensors").items()
        if key.startswith("vis")
    }
    safetensors.write(tmp_path / "model.safetensors", state)
    with pytest.raises(ValueError, match="has the number 526, and the network 40 tokens"):
        load_scorer("clip", tmp_path)


def test_distances_compare_images_prepared_in_the_same_way(images, small_file, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(picture(20 + i, 30)).save(folder / f"{i}.png")
    file = tmp_path / "many.txt"
    file.write_text("a cat\n" * 12)
    given, network = read_captions(folder, file), load_network("small")
    same = distances(given, "dmd2", folder, network)["FD-small"]
    assert same.value == pytest.approx(0, abs=1e-6)
    assert "family dmd2 (central square, Lanczos to 256)" in same.protocol
    assert "the published numbers of dmd2 are of 30,000 captions" in same.remark
    assert distances(given, "dmd2", images[0], network)["FD-small"].value > 1e-4
    with pytest.raises(ValueError, match=r"1.png in .* is 30x21, and 0.png 30x20; expected pict"):
        distances(given, "plain", folder, network)


def test_the_command_prints_and_writes_the_scores(images, clip_folder, tmp_path):
    folder, file = images
    out = tmp_path / "scores.json"
    flags = (f"--images={folder}", f"--captions={file}", f"--text_scores=clip:{clip_folder}")
    code, stdout, stderr = forks.run("distill_jax.evaluate", *flags, f"--out={out}")
    assert code == 0, stderr
    assert "CLIP score " in stdout
    assert "captions are too long: the prompt 'the the the" in stdout
    row = json.loads(out.read_text())["scores"]["CLIP score"]
    assert f"{row['value']:.5g}" in stdout
    assert row["protocol"] in stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--student=x",), "--images is needed: the folder of the pictures"),
        (("--images=x",), "--captions needs --text_scores=clip:DIRECTORY"),
        (("--images=x", "--text_scores=clip"), "--text_scores=clip; expected NAME:DIRECTORY"),
        (("--images=x", "--text_scores=what:x"), "x is no folder; expected one with pictures"),
    ],
)
def test_the_command_refuses_flags_that_do_not_fit(flags, message):
    code, _, stderr = forks.run("distill_jax.evaluate", "--captions=no.txt", *flags)
    assert code == 1
    assert message in stderr
    assert "Traceback" not in stderr
