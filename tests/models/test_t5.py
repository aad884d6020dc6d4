"""T5's encoder computes what PyTorch's original computes, see pretrained/make_t5.py."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from distill_jax.models import t5, text_encoders
from distill_jax.models.pretrained import read_options
from distill_jax.models.t5 import T5Options, buckets, read_t5
from distill_jax.sampling.prompts import Pretrained
from distill_jax.storage import safetensors
from distill_jax.storage.weights import of_array
from tests.models.pretrained import IDS, MASK, T5, weights
from tests.models.test_diffusers import names_of, tree_of

RECORDED = np.load(pathlib.Path(__file__).parent / "pretrained" / "recorded_t5.npz")
PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("\u2581a", -1.0), ("\u2581red", -2.0)]
PIECES += [("\u2581fox", -2.0), ("x", -3.0), ("\u2581", -4.0)]


def write(folder, drop=(), **changes):
    """Writes a directory with the recorded network's random weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**T5, **changes}))
    shapes = json.loads(str(RECORDED["t5_names"]))
    state = {key: of_array(weights(key, tuple(shape))) for key, shape in shapes.items()}
    state["decoder.block.0.layer.0.layer_norm.weight"] = of_array(np.ones(3, np.float32))
    for name in drop:
        state["encoder.embed_tokens.weight"] = state.pop(name)
    safetensors.write(folder / "model.safetensors", state)
    return folder


def run(module, variables, mask=None):
    with jax.default_matmul_precision("highest"):
        return jax.jit(module.apply)(variables, jnp.asarray(IDS), mask)


@pytest.mark.parametrize("drop", [(), ("shared.weight",)])
def test_the_tokens_are_those_of_pytorch(tmp_path, drop):
    module, variables = read_t5(write(tmp_path, drop))
    for name, mask in (("last", None), ("masked", jnp.asarray(MASK))):
        expected = RECORDED[name]
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(run(module, variables, mask), expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "changes", [{"layer_norm_epsilon": 1e-4}, {"relative_attention_max_distance": 9}]
)
def test_another_epsilon_or_distance_is_seen_in_what_was_recorded(tmp_path, changes):
    module, variables = read_t5(write(tmp_path, **changes))
    assert np.abs(run(module, variables) - RECORDED["last"]).max() > 1e-3


@pytest.mark.parametrize(("count", "most"), [(32, 128), (8, 20)])
def test_distances_are_in_the_buckets_of_pytorch(count, most):
    options = T5Options(relative_attention_num_buckets=count, relative_attention_max_distance=most)
    found = buckets(options, 300)
    expected = RECORDED[f"buckets_{count}"]
    np.testing.assert_array_equal(np.concatenate([found[0], found[:, 0]]), expected)


def test_the_full_size_has_the_names_and_shapes_of_hugging_face():
    config, expected = tree_of("t5_v1_1_xxl_encoder")
    module = t5.T5(read_options(T5Options, config, "t5"))
    ids = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), ids)["params"]
    assert names_of(shapes) == expected
    assert sum(math.prod(shape) for shape in expected.values()) == 4_762_310_656


def test_a_directory_of_t5_encodes_prompts_without_a_start_token(tmp_path):
    folder = write(tmp_path / "t5")
    pieces = tokenizers.Tokenizer(tokenizers.models.Unigram(PIECES, 2))
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    pieces.decoder = tokenizers.decoders.Metaspace()
    pieces.add_special_tokens(["<pad>", "</s>"])
    pieces.save(str(folder / "tokenizer.json"))
    kind = Pretrained(str(folder), 4)
    text = kind.text()
    ids, notes = text.tokenizers[0](["a red", "a red fox a"])
    np.testing.assert_array_equal(ids, [[3, 4, 1, 0], [3, 4, 5, 1]])
    assert notes == ["the prompt 'a red fox a' has 5 tokens, and the network takes 4: 'a' is cut"]
    found = text(["a red"], 1)
    np.testing.assert_array_equal(found["text_mask"], [[True, True, True, False]])
    module, variables = read_t5(folder)
    expected = jax.jit(module.apply)(variables, jnp.asarray(ids[:1]), found["text_mask"])
    np.testing.assert_allclose(found["text"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mt5"}, "model_type 'mt5'; expected"),
        ({"feed_forward_proj": "relu"}, "feed_forward_proj is 'relu'; expected one of gated-gelu"),
        ({"num_layers": 4}, "has no encoder.block.3.layer.0.* it is of another network"),
        ({"d_kv": 3}, r"SelfAttention.*is of shape \(16, 8\).*expected \(16, 6\)"),
        ({"relative_attention_max_distance": 2}, "max_distance is 2; expected more than 2"),
    ],
)
def test_a_directory_that_does_not_fit_is_refused(tmp_path, changes, message):
    write(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        found = text_encoders.find(tmp_path)
        found.options()
        found.params()
