"""Tests the reader on files of flax.serialization, which also wrote the released ones."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from distill_jax.config import PAPER_UNETS
from distill_jax.diffusion.trained import Ddim, Trained
from distill_jax.sampling.loading import load
from distill_jax.storage.weights import of_array
from distill_jax.teachers import Imported, google_research, writer
from distill_jax.teachers.google_research import PUBLISHED, published, read
from tests.teachers.foreign import arrays
from tests.teachers.toys import MLP, UNET, config_of, network_of, params_of, save

CONFIG = config_of(MLP)
PARAMS = params_of(CONFIG)
SOURCE = {"format": "google_research", "file": "state", "sha256": "0"}
T = jnp.asarray([0.2, 0.9])
COND = {"label": jnp.asarray([0, 2])}


def test_a_unet_predicts_the_same_after_a_round_trip_through_flax_and_a_final(tmp_path):
    config = config_of(UNET)
    params = params_of(config)
    imported = read(save(tmp_path / "state", params), config.to_dict())
    student = load(writer.write(imported, SOURCE, config.data.to_dict(), tmp_path / "out"))
    z = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
    predict = jax.jit(lambda params: network_of(config)(params)(z, T, COND))
    for ours, theirs in zip(predict(student.params), predict(params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert student.network_spec is network_of(config)


def released_formulas(head, output, z, logsnr):
    """Returns x and eps of an output by the equations of the released code, in float64."""
    lam = np.asarray(logsnr, np.float64)[:, None, None, None]
    z, output = np.asarray(z, np.float64), np.asarray(output, np.float64)
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-lam))), np.sqrt(1 / (1 + np.exp(lam)))
    x = {
        "x": lambda: output,
        "eps": lambda: np.sqrt(1 + np.exp(-lam)) * (z - output / np.sqrt(1 + np.exp(lam))),
        "v": lambda: alpha * z - sigma * output,
        "both": lambda: sigma**2 * output[..., :1] + alpha * (z - sigma * output[..., 1:]),
    }[head]()
    eps = np.sqrt(1 + np.exp(lam)) * (z - x / np.sqrt(1 + np.exp(-lam)))
    return x, eps, alpha, sigma


@pytest.mark.parametrize("head", ["x", "eps", "v", "both"])
def test_an_imported_teachers_prediction_is_the_released_formula_at_every_noise_level(
    head, tmp_path
):
    config = config_of(MLP)
    config.parameterization = head
    imported = read(save(tmp_path / "state", params_of(config)), config.to_dict())
    network_spec, logsnr = imported.network_spec(), jnp.linspace(-20, 20, 41)
    t = network_spec.schedule.time(logsnr)
    z = jax.random.normal(jax.random.key(1), (41, *imported.shape))
    cond = {"label": jnp.arange(41) % 3}
    params = arrays(imported.params)
    ours = network_spec(params)(z, t, cond)
    output = network_spec.network.apply(params, z, t, cond)
    x, eps, alpha, sigma = released_formulas(head, output, z, network_spec.schedule.logsnr(t))
    # In units of what a rounding of z is amplified by, up to 2.2e4 at the ends.
    assert np.abs((ours.x - x) * (alpha if head == "eps" else 1)).max() < 1e-4
    assert np.abs((ours.eps - eps) * (1 if head in ("eps", "v") else sigma)).max() < 1e-4


def assert_read_as(params, path, given=None):
    read_params = arrays(read(path, CONFIG.to_dict(), given).params)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), read_params, params)


def test_arrays_in_pieces_and_of_other_types_are_read(tmp_path, monkeypatch):
    # Flax cuts arrays at a gigabyte.
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
    path = save(tmp_path / "state", PARAMS)
    assert b"__msgpack_chunked_array__" in path.read_bytes()
    assert_read_as(PARAMS, path)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    assert_read_as(half, save(tmp_path / "half", half))


def test_leaves_in_the_shapes_of_an_old_flax_are_reshaped(tmp_path):
    old = jax.tree.map(lambda leaf: leaf.reshape(1, -1), PARAMS)
    assert_read_as(PARAMS, save(tmp_path / "state", old))


@pytest.mark.parametrize(
    ("saved", "num_steps", "continuous"),
    [(0, 1024, True), (np.int32(8), 8, False), (np.asarray(8), 8, False)],
)
def test_a_student_is_one_on_its_grid_and_a_teacher_knows_all_times(
    saved, num_steps, continuous, tmp_path
):
    imported = read(save(tmp_path / "state", PARAMS, saved), CONFIG.to_dict())
    assert (imported.num_steps, imported.trained.all_times) == (num_steps, continuous)
    assert imported.trained == Trained(Ddim(num_steps), all_times=continuous)
    assert imported.label_dropout == 0


def test_the_steps_of_a_teacher_can_be_given_and_those_of_a_student_are_in_its_file(tmp_path):
    given = {"num_steps": 4}
    imported = read(save(tmp_path / "state", PARAMS), CONFIG.to_dict(), given)
    assert imported.trained == Trained(Ddim(4), all_times=True)
    with pytest.raises(ValueError, match="num_sample_steps 8, so .* leave out --set num_steps"):
        read(save(tmp_path / "student", PARAMS, 8), CONFIG.to_dict(), given)


def published_params(name):
    """Returns parameters like those of a published network, without memory."""
    model = {**google_research.UNET, **PAPER_UNETS[name], "dropout": 0.0}
    spec = {"schedule": google_research.COSINE, "label_dropout": 0.0, **PUBLISHED[name]}
    like = Imported({}, model, **spec).expected_params()
    zero = np.zeros((), np.float32)
    return jax.tree.map(lambda leaf: of_array(np.broadcast_to(zero, leaf.shape)), like)


@pytest.mark.parametrize(
    ("name", "size", "num_steps"),
    [
        ("cifar10", 60_004_099, 8192),
        ("imagenet64", 295_905_222, 1024),
        ("lsun128", 139_578_502, 1024),
    ],
)
def test_a_published_network_is_known_by_all_its_parameters(name, size, num_steps):
    params = published_params(name)
    found = published("state", params)
    # Salimans & Ho (2022), released code.
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size
    assert found["num_steps"] == num_steps
    assert found["num_classes"] == (1000 if name == "imagenet64" else 0)
    # Dropout is no part of a finished network.
    theirs = PAPER_UNETS[name]
    assert {**found["model"], "dropout": theirs["dropout"]}.items() >= theirs.items()
    assert found["model"]["dropout"] == 0
    del params["conv_in"]["bias"]
    message = "begins as " + name + ", and conv_in/bias has no elements in place of"
    with pytest.raises(ValueError, match=message):
        published("state", params)


def test_published_networks_are_those_of_the_configs():
    assert PUBLISHED.keys() == PAPER_UNETS.keys()


def test_a_network_that_is_not_published_needs_a_config(tmp_path):
    with pytest.raises(ValueError, match=r"none of the published.*no channels.*--config"):
        read(save(tmp_path / "state", PARAMS), None)


def test_another_dict_is_refused_with_what_it_has(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(serialization.to_bytes({"step": 1, "params": PARAMS}))
    with pytest.raises(
        ValueError, match="has the entries step .int., params .dict.; expected ema_params"
    ):
        read(path, CONFIG.to_dict())
    assert_read_as(PARAMS, path, {"key": "params"})


def test_a_parameter_that_is_no_number_is_refused(tmp_path):
    params = {**PARAMS, "input": "x"}
    with pytest.raises(ValueError, match="has 'x' among its parameters"):
        read(save(tmp_path / "state", params), CONFIG.to_dict())


def test_a_file_cut_short_or_of_another_kind_is_refused(tmp_path):
    content = save(tmp_path / "state", PARAMS).read_bytes()
    path = tmp_path / "cut"
    for size in range(0, len(content), 211):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="cut short, damaged"):
            read(path, CONFIG.to_dict())
    for other in (b"\x93NUMPY\x01", b"\x01", b"\x91" * 100_000):
        path.write_bytes(other)
        with pytest.raises(ValueError, match=r"cut short, damaged|holds a"):
            read(path, CONFIG.to_dict())


def changed(change):
    params = copy.deepcopy(PARAMS)
    change(params)
    return params


MISFITS = {
    "missing leaf": (lambda p: p["input"].pop("bias"), "lacks 1 of .* them input/bias"),
    "missing module": (lambda p: p.pop("output"), "lacks 2 of .* them output/bias"),
    "extra leaf": (
        lambda p: p["input"].update(scale=np.zeros(3)),
        "has, and the network does not, 1 of .* them input/scale",
    ),
    "another shape": (
        lambda p: p["input"].update(kernel=np.zeros((3, 3))),
        r"input/kernel is float32 of shape \(3, 3\); the network expects .* \(16, 8\)",
    ),
    "leaf that is no array": (
        lambda p: p["input"].update(kernel=1.0),
        r"input/kernel is float32 of shape \(\)",
    ),
    "not finite": (lambda p: p["input"]["bias"].fill(np.nan), "input/bias has values that are not"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_parameters_that_do_not_fit_are_named_and_nothing_is_written(kind, tmp_path):
    change, message = MISFITS[kind]
    imported = read(save(tmp_path / "state", changed(change)), CONFIG.to_dict())
    with pytest.raises(ValueError, match=message):
        writer.write(imported, SOURCE, {"name": "none"}, tmp_path / "teachers" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
