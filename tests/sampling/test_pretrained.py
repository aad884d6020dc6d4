"""Tests of published text encoders as conditioners, on small directories."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from distill_jax.data import DATASETS
from distill_jax.models.bert import read_bert
from distill_jax.models.clip_files import read_clip
from distill_jax.models.pretrained import torch_state
from distill_jax.run.fits import conditioner_fit
from distill_jax.sampling.prompts import load_conditioner
from distill_jax.storage import safetensors
from distill_jax.storage.weights import of_array
from tests.models.pretrained import BERT, NEW, vocabulary, weights
from tests.models.pretrained.directories import RECORDED, write

TEXTS = ["the cafe", "", "they that"]


def never():
    return False


def write_bert(folder, **changes):
    """Writes a small BERT with a tokenizer of pieces of words."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(str(RECORDED["pieces_json"]))
    return write(folder, {**BERT, **changes}, "bert_names")


def write_pipeline(folder):
    """Writes a small text tower of CLIP and its tokenizer in two folders, as Stable Diffusion."""
    for name in ("text_encoder", "tokenizer"):
        (folder / name).mkdir(parents=True)
    tokens, merges = vocabulary()
    shapes = json.loads(str(RECORDED["masked_names"]))
    shapes["embeddings.token_embedding.weight"][0] = len(tokens)
    state = {name: of_array(weights(name, tuple(shape))) for name, shape in shapes.items()}
    safetensors.write(folder / "text_encoder" / "model.safetensors", state)
    config = {**NEW, "model_type": "clip_text_model", "vocab_size": len(tokens)}
    config["eos_token_id"] = len(tokens) - 1
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config))
    numbers = {token: number for number, token in enumerate(tokens)}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(numbers))
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    return folder


def make(folder, workdir, length=8):
    options = {"name": "pretrained", "path": str(folder), "length": length}
    source = DATASETS["shapes"](count=64, tests=64)
    return conditioner_fit(options, epath.Path(workdir), source, None)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Returns a finished conditioner, and the tokens of its network."""
    folder = tmp_path_factory.mktemp("bert")
    module, variables = read_bert(write_bert(folder / "published"))
    fit = make(folder / "published", folder / "run")
    assert fit.finish(never) and not fit.finish(never)
    (folder / "published").rename(folder / "elsewhere")
    return fit, lambda ids, mask: jax.jit(module.apply)(variables, ids, mask)


def test_a_run_keeps_the_text_encoder_in_its_workdir(bert):
    fit, network = bert
    text = load_conditioner(fit.final)
    found = text(TEXTS, 3)
    ids, notes = text.tokenizers[0](TEXTS)
    assert not notes
    assert ids[0].tolist() == [2, 35, 41, 3, 0, 0, 0, 0]
    assert found["text_mask"].tolist() == (ids != 0).tolist()
    expected = network(jnp.asarray(ids), jnp.asarray(ids != 0))
    np.testing.assert_allclose(found["text"], expected, atol=1e-5)
    np.testing.assert_array_equal(text.null["text"][0], found["text"][1])
    assert text.null["text_mask"].sum() == 2
    assert dict(fit.kind.conditions(fit.source.spec).cond)["text"].shape == (8, 16)


def test_a_prompt_that_is_cut_is_said(bert):
    text = load_conditioner(bert[0].final)
    with pytest.warns(UserWarning, match="has 11 tokens, and the network takes 8: 'they cafe"):
        text("the that the that the that they cafe the", 1)


def test_a_directory_of_a_pipeline_has_text_encoder_and_tokenizer(tmp_path):
    fit = make(write_pipeline(tmp_path / "pipeline"), tmp_path / "run", 12)
    assert fit.finish(never) and not fit.finish(never)
    text, (module, variables) = (
        fit.conditioner,
        read_clip(tmp_path / "pipeline/text_encoder").text(),
    )
    found, ids = text(TEXTS, 3), text.tokenizers[0](TEXTS)[0]
    assert found["text_mask"].sum(axis=1).tolist() == [7, 2, 4]
    expected = jax.jit(module.apply)(variables, jnp.asarray(ids)).last
    mask = found["text_mask"]
    np.testing.assert_allclose(found["text"][mask], np.asarray(expected)[mask], atol=1e-5)


@pytest.mark.parametrize(("activation", "prefix"), [("quick_gelu", "text_model."), ("gelu", "")])
def test_a_kept_text_tower_is_that_of_the_file_bit_for_bit(tmp_path, activation, prefix):
    folder = write_pipeline(tmp_path / "pipeline")
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    config["hidden_act"] = activation
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config))
    file = folder / "text_encoder" / "model.safetensors"
    state = {
        name: of_array(np.array(leaf.read(()))) for name, leaf in safetensors.read(file).items()
    }
    positions = {"embeddings.position_ids": of_array(np.arange(12)[None])} if prefix else {}
    given = {f"{prefix}{name}": leaf for name, leaf in {**state, **positions}.items()}
    safetensors.write(file, given)
    fit = make(folder, tmp_path / "run")
    assert fit.finish(never)
    kept = torch_state(fit.conditioner.params)
    assert kept.keys() == {f"text_model.{name}" for name in state}
    for name, leaf in state.items():
        again = kept[f"text_model.{name}"].read(())
        np.testing.assert_array_equal(again, leaf.read(()), err_msg=name)
    assert fit.conditioner.encoder.encoders[0].hidden_act == activation


def damage(folder):
    """Changes one weight."""
    state = dict(safetensors.read(folder / "model.safetensors"))
    name = "encoder.layer.0.output.dense.bias"
    state[name] = of_array(np.ones(state[name].shape, np.float32))
    safetensors.write(folder / "model.safetensors", state)


def test_other_weights_in_the_directory_are_refused(tmp_path):
    folder = write_bert(tmp_path / "published")
    assert make(folder, tmp_path / "run").finish(never)
    damage(folder)
    with pytest.raises(ValueError, match="is the text encoder .*choose another --workdir"):
        make(folder, tmp_path / "run").finish(never)


@pytest.mark.parametrize(
    ("changes", "length", "message"),
    [
        ({}, 13, "conditioner.length is 13; this network takes at most 12 tokens"),
        (
            {"model_type": "gpt2"},
            8,
            "has model_type 'gpt2'; expected that of a text encoder, one of",
        ),
        ({"hidden_size": 0}, 8, "hidden_size is 0; expected a whole number from 1"),
        ({"vocab_size": 45}, 8, "has the number 45, and the network knows 45: take the one that"),
        ({"num_hidden_layers": 4}, 8, "has no encoder.layer.3"),
    ],
)
def test_a_directory_that_does_not_fit_is_refused(tmp_path, changes, length, message):
    write_bert(tmp_path / "published", **changes)
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "published", tmp_path / "run", length).finish(never)
    assert not (tmp_path / "run").exists()


def test_a_directory_without_its_files_is_refused(tmp_path):
    for path, message in (("", "path is empty"), (tmp_path / "none", "has no config.json")):
        with pytest.raises(ValueError, match=message):
            make(path, tmp_path / "run")
    write_bert(tmp_path / "published")
    (tmp_path / "published" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="has no tokenizer; expected"):
        make(tmp_path / "published", tmp_path / "run").finish(never)


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer": ["{}", "[PAD]"]},
        {"tokenizer": [5, 6]},
        {"tokenizer": "x"},
        {"model": "[" * 5000},
        {"model": '{"model_type": "bert", "vocab_size": 10}'},
        {"model": '{"model_type": ["bert"]}'},
        {"length": 10**6},
    ],
)
def test_a_damaged_manifest_is_one_message(bert, tmp_path, change):
    place = tmp_path / "final"
    place.mkdir()
    content = json.loads((bert[0].final / "manifest.json").read_text())
    del content["checksum"]
    inside = content if "tokenizer" in change else content["conditioner"]
    inside.update(change)
    (place / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="does not describe a conditioner") as caught:
        load_conditioner(epath.Path(place))
    assert len(str(caught.value)) < 600 and not re.search("\n", str(caught.value))
