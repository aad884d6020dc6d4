"""ADM's networks against golden outputs of the released code (see foreign.py)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models.build import make_network
from distill_jax.storage.weights import of_array
from distill_jax.teachers import adm
from tests.teachers.foreign import arrays, digest, filled_state, image, size

TINY = adm.Found(3, 64, (1, 2), 1, (1,), 10)
UNCONDITIONAL = TINY._replace(num_classes=0)
OTHERS = {"side": 8, "schedule": "iddpm", "head_channels": 64}
T = np.asarray([0.3, 1.0, 0.001, 0.5, 0.95])


def listing(found, rest):
    """Returns the names and shapes in its file: labels by row, and a variance beside eps."""
    names = {leaf.name: leaf.shape for _, leaf in adm.leaves(found, rest)}
    for name in ("out.2.weight", "out.2.bias"):
        names[name] = (2 * names[name][0], *names[name][1:])
    if "label_emb.weight" in names:
        names["label_emb.weight"] = names["label_emb.weight"][::-1]
    return names


def state_of(found):
    return filled_state(listing(found, adm.Released(8, None, True, "iddpm")))


@functools.cache
def rows(found, split_first, heads=None):
    """Returns z, the network's output and the predicted x at every T; the first two are golden."""
    given = {**OTHERS, "split_first": split_first}
    if heads:
        given["heads"] = given.pop("head_channels") // 16
    teacher = adm.convert(state_of(found), given)
    network_spec = make_network(teacher._asdict(), teacher.data)
    z, t = jnp.concatenate([image(), image(), image()])[:5], jnp.asarray(T, jnp.float32)
    cond = {"label": jnp.asarray([1, 7, 1, 2, 10], jnp.int32)} if found.num_classes else {}

    @jax.jit
    def run(params):
        return network_spec.network.apply(params, z, t, cond), network_spec(params)(z, t, cond).x

    with jax.default_matmul_precision("highest"):
        levels = network_spec.schedule.alpha(t), network_spec.schedule.sigma(t)
        parts = (z, *run(arrays(teacher.params)), *levels)
        return [np.asarray(part, np.float64) for part in parts]


@pytest.mark.parametrize(
    ("arguments", "golden"),
    [
        (
            (TINY, True),
            ([0.079601, 0.145155, 0.126401], [0.383943, 0.781683, 1.506017]),
        ),
        (
            (UNCONDITIONAL, False, 4),
            ([-0.009523, 0.067599, -0.433983], [0.880373, 1.249843, 0.793999]),
        ),
    ],
    ids=["labels, split first", "no labels, four heads first"],
)
def test_an_imported_teacher_predicts_eps_as_the_released_code_does(arguments, golden):
    # At index 299 and 999 of 1,000, which are t = 0.3 and 1.
    output = rows(*arguments)[1]
    np.testing.assert_allclose([output[0, 0, 0], output[1, 5, 3]], golden, atol=1e-5)


def test_its_prediction_is_the_formula_at_every_noise_level():
    z, eps, x, alpha, sigma = rows(TINY, True)
    alpha, sigma = alpha[:, None, None, None], sigma[:, None, None, None]
    # alpha(1) is 5e-5, and what x is divided by.
    np.testing.assert_allclose(x * alpha, z - sigma * eps, atol=1e-6)


def released(index):
    """Returns a published network's facts in its arrays, and the others."""
    return list(adm.RELEASED.items())[index]


@pytest.mark.parametrize(
    ("found", "rest", "golden", "parameters"),
    [
        (TINY, adm.Released(8, None, True, "iddpm"), (145, "9643812282d0b03a"), 3_297_670),
        (UNCONDITIONAL, adm.Released(8, 4, False, "ddpm"), (144, "012caeeb388be78b"), 3_295_110),
        (
            *released(0),
            (541, "b879ba9ed4fe94bb"),
            295_904_454,
        ),
        (
            *released(1),
            (493, "d91b9be2449a697e"),
            421_529_606,
        ),
        (
            *released(3),
            (566, "b9c90be1570d1541"),
            552_814_086,
        ),
        (
            *released(4),
            (645, "f95458c996170da9"),
            558_997_638,
        ),
    ],
    ids=["tiny", "tiny without labels", "64x64", "128x128", "256x256 without labels", "512x512"],
)
def test_names_and_shapes_are_those_of_the_released_code_and_say_what_the_network_is(
    found, rest, golden, parameters
):
    names = listing(found, rest)
    assert digest(names) == golden
    assert size(names) == parameters
    zero = np.float32(0)
    state = {name: of_array(np.broadcast_to(zero, shape)) for name, shape in names.items()}
    assert adm.infer(state) == found


def test_an_import_says_what_the_network_is():
    teacher = adm.convert(state_of(TINY), {**OTHERS, "split_first": True})
    assert teacher.schedule == {"name": "iddpm"}
    assert teacher.parameterization == "eps"
    assert (teacher.shape, teacher.num_classes, teacher.label_dropout) == ((8, 8, 3), 10, 0.0)
    assert teacher.params["unet"]["output"]["kernel"].shape == (3, 3, 64, 3)


def zeros(*shape):
    return of_array(np.zeros(shape, np.float32))


def renamed(state, old, new):
    return {name.replace(old, new): array for name, array in state.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: renamed(state, "output_blocks", "nothing"), "its classifiers are not"),
        (
            lambda state: renamed(state, "input_blocks.2.0.in_layers.2", "input_blocks.2.0.op"),
            "only networks with resblock_updown",
        ),
        (
            lambda state: {**state, "input_blocks.1.0.emb_layers.1.weight": zeros(64, 256)},
            "only networks with use_scale_shift_norm",
        ),
        (
            lambda state: {**state, "input_blocks.0.0.weight": zeros(64, 6, 3, 3)},
            "the network takes 6 channels and returns 6",
        ),
        (lambda state: renamed(state, "time_embed.0.b", "x"), "time_embed.0.bias is missing"),
        (lambda state: {**state, "x": zeros(2)}, r"x of shape \(2,\) is not part"),
    ],
    ids=["classifier", "convolutions", "shift", "upsampler", "missing", "extra"],
)
def test_checkpoints_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        adm.convert(change(state_of(UNCONDITIONAL)), {**OTHERS, "split_first": True})


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, "say side, heads, split_first, schedule: give them, for example --set side=64 --set"),
        ({"side": 8, "head_channels": 4}, "say split_first, schedule: .* --set split_first=false"),
    ],
)
def test_what_the_arrays_do_not_say_must_be_given_for_other_networks(given, missing):
    facts = r"image_channels 3, channels 64, multipliers \(1, 2\), .*learned True"
    with pytest.raises(ValueError, match=f"no released network has .*{facts}.*{missing}"):
        adm.convert(state_of(UNCONDITIONAL), given)


def test_a_released_network_is_recognised_by_everything_that_its_arrays_say():
    """An own network with the multipliers of a released one is none of them."""
    found, rest = released(0)
    assert adm._rest(found, {}) == rest
    for change in ({"channels": 128}, {"blocks": 2}, {"num_classes": 0}, {"learned": False}):
        with pytest.raises(ValueError, match="no released network"):
            adm._rest(found._replace(**change), {})
    assert adm._rest(found, {"schedule": "ddpm"}) == rest._replace(schedule="ddpm")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sied": 8}, "takes no --set sied; it takes: side, heads, .*; did you mean 'side'"),
        ({"side": 8.5}, "--set side is 8.5; expected a whole number from 1 to 4,096"),
        ({"side": True}, "--set side is True; expected a whole"),
        ({"split_first": 1}, "--set split_first is 1; expected true or false"),
        ({"schedule": "cosine"}, "--set schedule is 'cosine'; expected one of iddpm, ddpm"),
        ({"heads": 4}, "heads and head_channels are both given"),
        ({"head_channels": 48}, "has 128 channels, which 48 channels of a head do not divide"),
    ],
)
def test_a_value_that_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        adm.convert(state_of(TINY), {**OTHERS, "split_first": True, **given})


def test_given_values_become_the_networks():
    given = {"side": 16, "schedule": "ddpm", "split_first": True, "label_dropout": 0.1}
    teacher = adm.convert(state_of(TINY), {**given, "head_channels": 32})
    assert (teacher.shape, teacher.schedule) == ((16, 16, 3), {"name": "ddpm"})
    assert (teacher.model["heads"], teacher.model["head_dim"]) == (None, 32)
    assert teacher.trained.guidance.null
