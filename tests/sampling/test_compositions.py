"""Text encoders of SDXL, SD3 and FLUX give what diffusers' pipelines do, see make_text.py."""

import dataclasses
import json
import pathlib
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from distill_jax.config import FLUX_TEXT, SD3_TEXT, SDXL_TEXT, base, pipeline, stage
from distill_jax.data import DATASETS
from distill_jax.diffusion.spec import DataSpec, Leaf, caption_data
from distill_jax.models import text_compositions, text_encoders
from distill_jax.models.pretrained import read_options, torch_state
from distill_jax.run import pipeline as run_pipeline
from distill_jax.run import plan
from distill_jax.run.fits import conditioner_fit
from distill_jax.sampling.loading import load
from distill_jax.sampling.pipeline_parts import read_parts
from distill_jax.sampling.prompts import Pretrained, load_conditioner
from distill_jax.storage import checkpoint, safetensors
from distill_jax.storage.weights import of_array
from tests.models.pretrained.text import (
    LENGTH,
    PROMPTS,
    T5_LENGTH,
    WIDTH,
    write_pipeline,
)
from tests.sampling.test_autoencoder import write as write_vae

RECORDED = np.load(pathlib.Path(__file__).parents[1] / "models/pretrained/recorded_text.npz")
WIDE = ("bfloat16", "float32")
LENGTHS = {"sdxl": LENGTH, "sd3": T5_LENGTH, "flux": T5_LENGTH}


def shapes_of(network, config):
    """Returns the shapes of the weights of an encoder by PyTorch's names."""
    family = text_encoders.FAMILIES[config["model_type"]]
    options = read_options(family.kind, config, network)
    shapes = text_encoders.shapes(options, network.endswith("Projection"))
    state = torch_state(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
    return {name: leaf.shape for name, leaf in state.items()}


def save(file, state):
    safetensors.write(file, {name: of_array(leaf) for name, leaf in state.items()})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Returns the directories of the pipelines by name."""
    folder = tmp_path_factory.mktemp("pipelines")
    return {kind: write_pipeline(folder / kind, kind, shapes_of, save) for kind in LENGTHS}


def encode(kind, prompts=PROMPTS):
    text = kind.text() if isinstance(kind, Pretrained) else kind
    with warnings.catch_warnings(), jax.default_matmul_precision("highest"):
        warnings.simplefilter("ignore")
        return text(list(prompts), len(prompts))


def near(found, name, rows=slice(None)):
    expected = RECORDED[name][rows]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", LENGTHS)
def test_conditions_are_those_of_the_pipeline(folders, kind):
    found = encode(Pretrained(str(folders[kind]), LENGTHS[kind]))
    rows = [0, 2, 3] if kind == "sdxl" else slice(None)  # Its empty prompt is zeros.
    for name in ("text", "pooled"):
        near(found[name][rows], f"{kind}_{name}", rows)
    spec = Pretrained(str(folders[kind]), LENGTHS[kind]).conditions(caption_data((1, 1, 1)))
    assert [(name, leaf.shape) for name, leaf in spec.cond] == [
        (name, found[name].shape[1:]) for name in ("text", "text_mask", "pooled")
    ]
    assert found["text_mask"][1].sum() == {"sdxl": 2, "sd3": 3, "flux": 1}[kind]


def test_the_null_of_sdxl_is_zeros_and_a_negative_prompt_is_encoded(folders):
    text = Pretrained(str(folders["sdxl"]), LENGTH).text()
    null = text.null
    assert not null["text"].any() and not null["pooled"].any()
    with jax.default_matmul_precision("highest"):
        negative = dataclasses.replace(text, empty="that fox").null
    near(negative["text"], "sdxl_negative")
    near(negative["pooled"], "sdxl_negative_pooled")


def test_the_null_of_sdxl_is_encoded_where_its_index_says_so(folders, tmp_path):
    folder = shutil.copytree(folders["sdxl"], tmp_path / "sdxl")
    change(folder, "force_zeros_for_empty_prompt", False)
    text = Pretrained(str(folder), LENGTH).text()
    near(encode(text, ["", "a red fox"])["text"], "sdxl_text", [1, 0])


def change(folder, key, value):
    content = json.loads((folder / "model_index.json").read_text())
    content[key] = value
    (folder / "model_index.json").write_text(json.dumps(content))


def test_zeros_stand_for_a_t5_that_is_null_or_not_wanted(folders, tmp_path):
    folder = shutil.copytree(folders["sd3"], tmp_path / "sd3")
    (folder / "transformer").mkdir()
    width = {"joint_attention_dim": WIDTH}
    (folder / "transformer" / "config.json").write_text(json.dumps(width))
    found = encode(Pretrained(str(folder), T5_LENGTH, t5=False))
    near(found["text"], "sd3_without")
    near(found["pooled"], "sd3_pooled")
    assert not found["text_mask"][:, LENGTH:].any()
    shutil.rmtree(folder / "text_encoder_3")
    change(folder, "text_encoder_3", [None, None])
    near(encode(Pretrained(str(folder), T5_LENGTH))["text"], "sd3_without")


def test_the_null_of_sd3_is_the_empty_prompt(folders):
    text = Pretrained(str(folders["sd3"]), T5_LENGTH).text()
    with jax.default_matmul_precision("highest"):
        near(text.null["text"], "sd3_null")


def test_each_tokenizer_says_once_what_it_cuts(folders):
    text = Pretrained(str(folders["sd3"]), T5_LENGTH).text()
    (note,) = text.notes([PROMPTS[0], PROMPTS[-1]])
    clip, t5 = note.split("; ")
    assert "has 50 tokens, and the network takes 12: 'red fox that" in clip
    assert "and the network takes 9: '<unk> red fox" in t5
    with pytest.warns(UserWarning, match="takes") as caught:
        Pretrained(str(folders["sd3"]), T5_LENGTH).text()(PROMPTS[-1], 1)
    assert [str(warning.message) for warning in caught] == [clip, t5]


@pytest.mark.parametrize(
    ("described", "text", "pooled", "counts"),
    [
        (SDXL_TEXT, (77, 2048), 1280, [123_060_480, 694_659_840]),
        (SD3_TEXT, (333, 4096), 2048, [123_650_304, 694_659_840, 4_762_310_656]),
        (FLUX_TEXT, (512, 4096), 768, [123_060_480, 4_762_310_656]),
    ],
)
def test_the_full_sizes_have_the_published_numbers_of_parameters(described, text, pooled, counts):
    encoder = Pretrained(model=described).encoder
    leaves = encoder.leaves
    assert leaves["text"].shape == text and leaves["pooled"].shape == (pooled,)
    shapes = text_compositions.shapes(encoder)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in shapes.values()]
    assert sizes == counts
    again = text_compositions.parse(encoder.described(), 0, "again")
    assert again == encoder


def keep(folder, workdir, length):
    options = {"name": "pretrained", "path": str(folder), "length": length}
    source = DATASETS["shapes"](count=64, tests=64)
    return conditioner_fit(options, epath.Path(workdir), source, None)


def test_a_kept_conditioner_gives_the_same_conditions_without_the_directory(folders, tmp_path):
    folder = shutil.copytree(folders["sdxl"], tmp_path / "sdxl")
    finished = [keep(folder, tmp_path / run, LENGTH) for run in ("one", "two")]
    assert all(fit.finish(lambda: False) for fit in finished)
    assert not finished[0].finish(lambda: False)
    one, two = (checkpoint.fingerprint(fit.final) for fit in finished)
    assert one == two
    expected = encode(finished[0].kind)
    shutil.rmtree(folder)
    text = load_conditioner(finished[0].final)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(text.params))
    found = encode(text)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf)


def test_half_precision_is_kept_and_computed_in_float32(folders, tmp_path):
    """The conditions are those of the same weights in float32, bit for bit."""
    places = {dtype: shutil.copytree(folders["flux"], tmp_path / dtype) for dtype in WIDE}
    for dtype, folder in places.items():
        for name in ("text_encoder", "text_encoder_2"):
            file = folder / name / "model.safetensors"
            state = {key: np.array(leaf.read(())) for key, leaf in safetensors.read(file).items()}
            save(file, {key: leaf.astype("bfloat16").astype(dtype) for key, leaf in state.items()})
    fit = keep(places["bfloat16"], tmp_path / "run", T5_LENGTH)
    assert fit.finish(lambda: False)
    text = load_conditioner(fit.final)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(text.params)} == {"bfloat16"}
    found, wide = encode(text), encode(Pretrained(str(places["float32"]), T5_LENGTH))
    for name, leaf in wide.items():
        assert leaf.dtype != jnp.bfloat16
        np.testing.assert_array_equal(found[name], leaf)


def data_of(encoder, **changes):
    """Returns the spec of a network that takes what an encoder gives."""
    leaves = {**encoder.leaves, **changes}
    return DataSpec(Leaf((4, 4, 4)), False, tuple(leaves.items()))


def test_the_parts_of_a_pipeline_fit_its_network(folders, tmp_path):
    folder = shutil.copytree(folders["sd3"], tmp_path / "sd3")
    write_vae(folder / "vae")
    encoder = Pretrained(str(folder), T5_LENGTH).encoder
    spec = data_of(encoder)
    _, text = read_parts([epath.Path(folder)], spec)
    near(encode(text)["text"], "sd3_text")
    for changes, message in (
        ({"pooled": Leaf((25,))}, r"pooled of shape \(24,\), and the network .* \(25,\)"),
        ({"text": Leaf((21, 47))}, r"text of shape \(21, 48\), .*, and .* \(21, 47\)"),
    ):
        with pytest.raises(ValueError, match=f"{message}.*: expected its own pipeline"):
            read_parts([epath.Path(folder)], data_of(encoder, **changes))


def remove(name):
    return lambda folder: shutil.rmtree(folder / name)


def points(folder):
    """Puts a pointer of Git LFS in the place of weights."""
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (folder / "text_encoder_2" / "model.safetensors").write_text(text)


def only_pieces(folder):
    place = folder / "tokenizer_3"
    (place / "tokenizer.json").rename(place / "spiece.model")


def only_attributes(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")


def only_index(folder):
    for place in (*folder.glob("text*"), *folder.glob("tokenizer*")):
        shutil.rmtree(place)


def without_index(folder):
    (folder / "model_index.json").unlink()
    (folder / "transformer").mkdir()
    shutil.rmtree(folder / "text_encoder_3")


def not_projected(folder):
    """Takes the projection out of the second CLIP."""
    file = folder / "text_encoder_2" / "model.safetensors"
    state = {key: np.array(leaf.read(())) for key, leaf in safetensors.read(file).items()}
    save(file, {key: leaf for key, leaf in state.items() if key != "text_projection.weight"})


def options(name, **changes):
    def change(folder):
        place = folder / name / "config.json"
        place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))

    return change


def quantised(folder):
    file = folder / "text_encoder_3" / "model.safetensors"
    state = {key: np.array(leaf.read(())) for key, leaf in safetensors.read(file).items()}
    save(file, {key: leaf.astype(np.int8) for key, leaf in state.items()})


def clip_only(folder):
    change(folder, "text_encoder_2", [None, None])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("text_encoder_3"), "has no text_encoder_3/.*licence.*or set conditioner.t5 to Fal"),
        (remove("text_encoder_2"), "has no text_encoder_2/, which its model_index.json names"),
        (remove("tokenizer_2"), "tokenizer_2 has no tokenizer; expected CLIP's vocab.json"),
        (only_pieces, "tokenizer_3 has spiece.model and no tokenizer.json"),
        (only_index, "has no text_encoder/, which its model_index.json names.*with a token"),
        (only_attributes, "has no config.json.*downloaded to this machine"),
        (without_index, "has no text_encoder_3/, the T5 of Stable Diffusion 3"),
        (clip_only, r"has text_encoder \(clip_text_model\), text_encoder_3 \(t5\); expected"),
        (points, "text_encoder_2/model.safetensors is a pointer of Git LFS"),
        (not_projected, "text_encoder_2/model.safetensors has no text_projection.weight"),
        (quantised, "has weights of dtype int8; expected one of float32"),
        (options("text_encoder_2", max_position_embeddings=11), r"not fit each other: \[12, 11\]"),
        (options("text_encoder_2", hidden_size=60), "have 76 channels together, and T5 has 48"),
        (options("text_encoder_3", model_type="gpt2"), "has model_type 'gpt2'; expected"),
        (options("text_encoder", vocab_size=99), "tokenizer has the number 526, and the network"),
    ],
)
def test_a_pipeline_that_cannot_be_read_is_one_message(folders, tmp_path, damage, message):
    folder = shutil.copytree(folders["sd3"], tmp_path / "sd3")
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        keep(folder, tmp_path / "run", T5_LENGTH).finish(lambda: False)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ('{"model_type": "sd4"}', "conditioner.model is .*expected a JSON object"),
        ('{"model_type": "sdxl"}', "expected a list of encoders"),
        ('{"model_type": "sdxl", "encoders": [3]}', "an encoder is 3; expected a JSON object"),
        ('{"model_type": "sdxl", "encoders": [{"model_type": "t5"}]}', "are .*T5Opt.*expected"),
        ('{"model_type": "sd3", "encoders": [], "width": -1}', "width is -1; expected 0"),
        ("[" * 5000, "conditioner.model is"),
    ],
)
def test_a_damaged_description_is_one_message(model, message):
    with pytest.raises(ValueError, match=message) as caught:
        Pretrained(model=model).conditions(caption_data((1, 1, 1)))
    assert len(str(caught.value)) < 600


def test_t5_can_be_left_out_of_sd3_only(folders):
    for kind in ("sdxl", "flux"):
        with pytest.raises(ValueError, match="t5 is False, and .* is no Stable Diffusion 3"):
            Pretrained(str(folders[kind]), t5=False).conditions(caption_data((1, 1, 1)))
    with pytest.raises(ValueError, match="length is 13; this network takes at most 12"):
        Pretrained(str(folders["sdxl"]), 13).conditions(caption_data((1, 1, 1)))


def test_a_run_caches_pooled_texts_and_its_student_has_the_conditioner(folders, tmp_path):
    config = base()
    config.data = {"name": "shapes", "count": 64, "tests": 64}
    config.codec = {"name": "patch_pca", "patch": 2, "channels": 3}
    given = {"path": str(folders["sd3"]), "length": T5_LENGTH}
    config.conditioner = {"name": "pretrained", **given}
    config.model = {"name": "mmdit", "blocks": 2, "heads": 2, "head_dim": 8, "dual": 0}
    config.model.places = config.model.base = 8
    config.schedule, config.parameterization = {"name": "rectified_flow"}, "flow"
    config.batch_size = 8
    config.stages = pipeline(
        stage("teacher", "diffusion", num_steps=2, steps=2, learning_rate=1e-3)
    )
    run = plan.make(config, epath.Path(tmp_path / "run"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_pipeline.run(run, stop=lambda: False)
    texts = run.cache.read()
    expected = encode(Pretrained(str(folders["sd3"]), T5_LENGTH), [*texts.numbers][:5])
    kept = texts.texts.take(range(5))
    for name in ("text", "pooled"):
        np.testing.assert_allclose(kept[name], expected[name], atol=1e-5)
    student = load(tmp_path / "run")
    assert dict(student.manifest.spec.cond)["pooled"].shape == (24,)
    near(encode(student.text)["text"], "sd3_text")
    assert np.isfinite(student.sample(0, 1, PROMPTS[0])).all()
