"""EDM's networks against golden outputs of the released code (see foreign.py)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.schedule import add_noise
from distill_jax.diffusion.trained import Heun
from distill_jax.models.build import make_network
from distill_jax.storage.weights import of_array
from distill_jax.teachers import edm
from tests.teachers.foreign import arrays, assert_golden, digest, fill, filled_state, image, size

SONG = {
    "model_type": "SongUNet",
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "channel_mult_noise": 1,
    "resample_filter": [1, 1],
}
NCSN = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
SMALL = {
    "img_resolution": 8,
    "img_channels": 3,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
DDPMPP = {**SMALL, **SONG, "label_dim": 10, "model_channels": 16, "augment_dim": 9, "dropout": 0.13}
NCSNPP = {**DDPMPP, **NCSN, "label_dim": 0}
DHARIWAL = {**SMALL, "model_type": "DhariwalUNet", "label_dim": 10, "model_channels": 64}
TINY = {"ddpm++": DDPMPP, "ncsn++": NCSNPP, "adm": DHARIWAL}

CIFAR = {
    **SONG,
    "img_resolution": 32,
    "img_channels": 3,
    "label_dim": 10,
    "model_channels": 128,
    "channel_mult": [2, 2, 2],
    "augment_dim": 9,
    "use_fp16": True,
    "dropout": 0.13,
}
IMAGENET = {
    "img_resolution": 64,
    "img_channels": 3,
    "label_dim": 1000,
    "model_type": "DhariwalUNet",
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
}
# Our rows: two golden ones, the same without their labels, and noise levels from end to end.
WIDE = {"name": "karras", "sigma_min": float(np.exp(-10)), "sigma_max": float(np.exp(10))}
LOGSNR = np.asarray([-20.0, -13, -6, 0, 6, 13, 20])
SIGMA = np.concatenate([[0.3, 20.0], [0.3, 20.0], np.exp(-LOGSNR / 2)])


def listing(kwargs):
    return {leaf.name: leaf.shape for _, leaf in edm.leaves(kwargs)}


def zeros(*shape):
    return of_array(np.zeros(shape, np.float32))


def state_of(kwargs):
    """Returns the network's arrays, and those in its file that sampling does not need."""
    unused = {"model.enc.4x4_down.conv0.resample_filter": zeros(1, 1, 2, 2)}
    if kwargs.get("augment_dim"):
        unused["model.map_augment.weight"] = zeros(16, 9)
    return {**filled_state(listing(kwargs)), **unused}


@functools.cache
def imported(name):
    return edm.convert("EDMPrecond", TINY[name], state_of(TINY[name]))


@functools.cache
def rows(name):
    """Returns z, the network's output and the predicted x of every row."""
    teacher = imported(name)
    spec = {**teacher._asdict(), "schedule": WIDE}
    network_spec = make_network(spec, teacher.data)
    t = network_spec.schedule.time(jnp.asarray(-2 * np.log(SIGMA), jnp.float32))
    ends = jnp.tile(image()[:1], (len(LOGSNR), 1, 1, 1))
    eps = jnp.asarray(np.cos(np.arange(ends.size)).reshape(ends.shape), jnp.float32)
    z = jnp.concatenate([image(), image(), add_noise(network_spec.schedule, ends, eps, t[4:])])
    labels = jnp.asarray([1, 7, 10, 10] + [3] * len(LOGSNR), jnp.int32)
    cond = {"label": labels} if teacher.num_classes else {}

    @jax.jit
    def run(params):
        scaled = network_spec.parameterization.scale(z, network_spec.schedule, t)
        return network_spec.network.apply(params, scaled, t, cond), network_spec(params)(
            z, t, cond
        ).x

    with jax.default_matmul_precision("highest"):
        return np.asarray(z), *(np.asarray(part) for part in run(arrays(teacher.params)))


@pytest.mark.parametrize(
    ("name", "rows_of", "golden"),
    [
        (
            "ddpm++",
            slice(0, 2),
            (
                -0.1185829,
                0.4047305,
                [-0.009906, 0.061798, 0.188952],
                [-0.606053, -0.2809, 0.155199],
            ),
        ),
        (
            "ddpm++",
            slice(2, 4),
            (
                -0.1099620,
                0.4149916,
                [0.010813, 0.045918, 0.198067],
                [-0.798325, -0.051491, -0.166555],
            ),
        ),
        (
            "ncsn++",
            slice(0, 2),
            (
                -0.0972638,
                0.4106367,
                [0.039411, 0.025811, 0.196266],
                [-0.500123, -0.198361, -0.026764],
            ),
        ),
        (
            "adm",
            slice(0, 2),
            (
                -0.0827117,
                0.4116572,
                [0.05282, 0.017271, 0.179885],
                [-0.800216, -0.540845, 0.19034],
            ),
        ),
        (
            "adm",
            slice(2, 4),
            (
                -0.1014726,
                0.4225808,
                [0.051802, -0.009268, 0.200708],
                [-1.004968, -0.791338, 0.191853],
            ),
        ),
    ],
    ids=["ddpm++", "ddpm++ without labels", "ncsn++", "adm", "adm without labels"],
)
def test_an_imported_teacher_denoises_as_the_released_code_does(name, rows_of, golden):
    assert_golden(rows(name)[2][rows_of], *golden)


@pytest.mark.parametrize("name", ["ddpm++", "adm"])
def test_its_prediction_is_the_papers_formula_at_every_noise_level(name):
    # Karras et al. (2022), Table 1: D = c_skip x + c_out F(c_in x; c_noise), sigma_data = 0.5.
    z, output, x = (part.astype(np.float64) for part in rows(name))
    sigma = SIGMA[:, None, None, None]
    c_skip = 0.25 / (sigma**2 + 0.25)
    c_out = sigma * 0.5 / np.sqrt(sigma**2 + 0.25)
    np.testing.assert_allclose(x, c_skip * z + c_out * output, atol=1e-4)
    # At the ends the formula has limits: the image itself, and the network alone.
    np.testing.assert_allclose(x[-1], z[-1], atol=1e-3)
    np.testing.assert_allclose(x[4], 0.5 * output[4], atol=1e-3)


@pytest.mark.parametrize(
    ("kwargs", "golden", "parameters"),
    [
        (DDPMPP, (144, "1c206c1b9e946b8d"), 189_523),
        (NCSNPP, (145, "c7284f4d5c7debf1"), 190_819 + 16),
        (DHARIWAL, (145, "e774de72aad36e1f"), 3_295_939),
        (CIFAR, (418, "44358c19154109bd"), 55_734_147),
        ({**CIFAR, "label_dim": 0}, (416, "d46862b421b3bd01"), 55_732_739),
        ({**CIFAR, **NCSN, "label_dim": 0}, (421, "901909447440d8df"), 56_395_523 + 128),
        (IMAGENET, (541, "215eb929dfe61b66"), 295_899_267),
    ],
    ids=[
        "ddpm++ tiny",
        "ncsn++ tiny",
        "adm tiny",
        "CIFAR-10 ddpm++",
        "CIFAR-10 ddpm++ without labels",
        "CIFAR-10 ncsn++ without labels",
        "ImageNet 64x64 adm",
    ],
)
def test_names_and_shapes_are_those_of_the_released_code(kwargs, golden, parameters):
    # Fixed frequencies are no parameters there, but in the file: the last summand.
    assert digest(listing(kwargs)) == golden
    assert size(listing(kwargs)) == parameters


def test_an_import_says_what_the_network_is():
    teacher = imported("ddpm++")
    assert teacher.parameterization == "edm"
    assert teacher.schedule == {"name": "karras"}
    assert (teacher.shape, teacher.num_classes, teacher.label_dropout) == ((8, 8, 3), 10, 0.0)
    assert teacher.model["dropout"] == 0.13
    assert (teacher.trained.sampler, teacher.trained.calls) == (Heun(18), 35)  # Of the paper.
    # The file's attention levels that a network of this size has not are left out.
    assert edm.convert("EDMPrecond", DDPMPP, state_of(DDPMPP)).model["attention"] == (4,)


@pytest.mark.parametrize(
    ("there", "here"), [("float16", "float16"), ("bfloat16", "bfloat16"), ("float64", "float32")]
)
def test_a_precision_stays_but_for_double_which_becomes_single(there, here):
    name = "model.map_layer0.bias"
    bias = fill(name, (64,)).astype(jnp.dtype(there))
    state = {**state_of(DDPMPP), name: of_array(bias)}
    found = edm.convert("EDMPrecond", DDPMPP, state).params["t_embed_0"]["bias"]
    assert found.dtype == here
    np.testing.assert_array_equal(found.read(()), bias.astype(jnp.dtype(here)), strict=True)


@pytest.mark.parametrize("highest", [1000.0, np.inf])  # inf is the default of EDM's code.
def test_noise_levels_stay_within_those_that_the_network_is_for(highest):
    kwargs = {**DDPMPP, "sigma_min": 0.01, "sigma_max": float(highest)}
    teacher = edm.convert("EDMPrecond", kwargs, state_of(DDPMPP))
    assert teacher.schedule == {"name": "karras", "sigma_min": 0.01, "sigma_max": 80.0}


def test_the_inputs_for_augmented_images_are_kept_if_that_is_said():
    state = {**state_of(DDPMPP), "model.map_augment.weight": of_array(fill("augment", (16, 9)))}
    dropped = edm.convert("EDMPrecond", DDPMPP, state)
    kept = edm.convert("EDMPrecond", DDPMPP, state, {"augment": True})
    assert "augment_embed" not in dropped.params and kept.model == {
        **dropped.model,
        "augment": True,
    }
    kernel = kept.params["augment_embed"]["kernel"].read(())
    np.testing.assert_array_equal(kernel, fill("augment", (16, 9)).T)
    assert jax.tree.structure(kept.params) == jax.tree.structure(kept.expected_params())
    with pytest.raises(
        ValueError, match="expected a SongUNet of augment_dim 9, not a SongUNet of 0"
    ):
        edm.convert("EDMPrecond", {**DDPMPP, "augment_dim": 0}, state, {"augment": True})


def without(name):
    return lambda state: {key: array for key, array in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("model.map_layer1.bias"), r"model.map_layer1.bias is missing; .* shape \(64,\)"),
        (
            lambda state: {**state, "model.map_layer1.bias": zeros(3)},
            r"model.map_layer1.bias has the shape \(3,\); expected an array of shape \(64,\)",
        ),
        (
            lambda state: {**state, "model.extra.weight": zeros(2, 3)},
            r"model.extra.weight of shape \(2, 3\) is not part of the network",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        edm.convert("EDMPrecond", DDPMPP, change(state_of(DDPMPP)))


@pytest.mark.parametrize(
    ("class_name", "change", "message"),
    [
        ("VPPrecond", {}, "the checkpoint's network is a VPPrecond; expected EDMPrecond"),
        ("EDMPrecond", {"model_type": "Other"}, "model_type is 'Other'; expected one of SongUNet"),
        ("Precond", {}, "is a Precond; .* EDM2 .* has no reader here"),
        ("EDMPrecond", {"sigma_data": 1.0}, "sigma_data is 1.0; expected only 0.5"),
        ("EDMPrecond", {"decoder_type": "skip"}, "decoder_type is 'skip'"),
        ("EDMPrecond", {"encoder_type": "skip"}, "encoder_type is 'skip'"),
        ("EDMPrecond", {"logvar_channels": 128}, "logvar_channels = 128 is no option"),
    ],
)
def test_networks_that_are_not_supported_are_refused(class_name, change, message):
    with pytest.raises(ValueError, match=message):
        edm.convert(class_name, {**DDPMPP, **change}, state_of(DDPMPP))


def test_a_description_without_a_size_is_refused():
    with pytest.raises(ValueError, match="has no img_resolution"):
        edm.convert("EDMPrecond", {"img_channels": 3}, {})
