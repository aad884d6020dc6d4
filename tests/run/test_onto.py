"""Tests of the option `onto`: the change of a stage is added to another network's weights."""

import json

import jax
import numpy as np
import pytest

from distill_jax.config import base, stage
from distill_jax.config import pipeline as in_order
from distill_jax.models.adapters import Adapted
from distill_jax.run import pipeline, plan
from distill_jax.runtime.trees import by_name
from distill_jax.sampling.loading import load, load_own

RATES = {"steps": 2, "learning_rate": 1e-2}
CHAIN = (
    stage("teacher", "diffusion", num_steps=2, **RATES),
    stage("student", "progressive", num_steps=1, **RATES),
    stage("denoiser", "dedistill", num_steps=2, **RATES),
    stage("adapted", "dedistill", teacher="student", num_steps=2, lora=2, **RATES),
)

KEEP = {"keep_weight": 1.0, "keep_labels": (0,)}
KEPT = {"lora": 2, "method": {"name": "diffusion", "num_steps": 2, **KEEP}}


def config_of(*stages):
    config = base()
    config.data.name, config.schedule.name = "mixture", "cosine"
    config.model.update(name="mlp", width=8, blocks=1)
    config.batch_size, config.log_every = 8, 1
    config.evaluate.update(w=(0.0,), num_samples=10, every=2, few=10)
    config.stages = in_order(*stages)
    return config


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("chain")
    assert pipeline.run(plan.make(config_of(*CHAIN), workdir), stop=lambda: False)
    return workdir


def learned(chain, start="s02_denoiser", **options):
    """Returns a stage that learns from data what `onto` may be given for."""
    options = {**RATES, "num_steps": 2, **options}
    return stage("learned", "diffusion", teacher=str(chain / start), **options)


def run(workdir, entry):
    """Runs one stage, and returns its finished network."""
    made = plan.make(config_of(entry), workdir)
    assert pipeline.run(made, stop=lambda: False)
    return load(workdir, parts=made.parts)


def weights(student):
    return by_name(student.merged.params)


def test_a_change_of_zero_leaves_the_network_bit_for_bit(chain, tmp_path):
    onto = str(chain / "s01_student")
    found = run(tmp_path, learned(chain, onto=onto, steps=1, learning_rate=0.0))
    student = load(onto)
    assert found.trained == student.trained
    for name, leaf in weights(student).items():
        np.testing.assert_array_equal(weights(found)[name], leaf)
    x, y = (each.sample(jax.random.key(0), 8) for each in (student, found))
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("lora", [0, 2])
@pytest.mark.parametrize("start", ["s02_denoiser", "s03_adapted"])
def test_the_result_is_the_network_and_the_change_from_the_start(start, lora, chain, tmp_path):
    onto, rank = chain / "s01_student", lora if start == "s02_denoiser" else 0
    there = run(tmp_path / "there", learned(chain, start, lora=rank))
    here = run(tmp_path / "here", learned(chain, start, lora=lora, onto=str(onto)))
    begun = load(chain / start)
    assert isinstance(here.params, Adapted) == bool(lora)
    assert here.manifest.distilled
    mine, plain = weights(here), weights(load(onto))
    assert max(np.abs(mine[name] - plain[name]).max() for name in plain) > 1e-3
    if lora == rank:
        for name, leaf in weights(there).items():
            # Sums of numbers of about 1, in float32, in another order.
            change = leaf - weights(begun)[name]
            np.testing.assert_allclose(mine[name] - plain[name], change, atol=1e-6)
    line = json.loads((tmp_path / "here" / "s00_learned" / "quality.jsonl").read_text())
    assert "Ddim(num_steps=1)" in line["protocol"]


def test_adapters_are_those_that_were_trained_and_change_the_other_network(chain, tmp_path):
    onto = chain / "s01_student"
    run(tmp_path / "there", learned(chain, lora=2))
    here = run(tmp_path / "here", learned(chain, lora=2, onto=str(onto)))
    trees = [by_name(load_own(tmp_path / name / "s00_learned", here.layout))
             for name in ("there", "here")]  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, *trees)
    assert here.manifest.adapters.base.path == str(onto / "final")


def test_kept_images_stay_where_they_were(chain, tmp_path):
    given = {"onto": str(chain / "s01_student"), "lora": 2, "steps": 20, "learning_rate": 3e-2}
    options = {"keep_weight": 1e4, "keep_labels": (0,)}
    found = [run(tmp_path / name, learned(chain, **given, **each))
             for name, each in (("free", {}), ("kept", options))]  # fmt: skip
    student = load(given["onto"])
    for labels, close in (((0,), True), ((1, 2, 3), False)):
        label = np.resize(labels, 60)
        want, free, kept = (each.sample(jax.random.key(0), 60, label) for each in (student, *found))
        moved, held = (float(np.abs(x - want).mean()) for x in (free, kept))
        assert (held < 0.2 * moved) == close
    line = json.loads((tmp_path / "kept/s00_learned/scalars.jsonl").read_text().splitlines()[-1])
    assert 0 < line["kept"] < 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"onto": "bogus"}, "onto 'bogus' is no earlier stage"),
        ({"teacher": ""}, "onto is .* name a teacher or `init`, and leave `new` out"),
        ({"new": ("w_embed",)}, "onto is .* name a teacher or `init`, and leave `new` out"),
        ({"model": {"name": "mlp", "width": 12, "blocks": 1}}, "parameter .* is .* in the teacher"),
        ({"lora": 2, "onto": "s03_adapted"}, "onto '.*s03_adapted' has adapters of its own"),
        ({**KEPT, "lora": 0}, "keep_weight is 1, keep_labels .0,., lora 0 and .* set all four"),
        ({**KEPT, "onto": ""}, "keep_weight is 1, .* lora 2 and onto '': images"),
        ({**KEPT, "method": {**KEPT["method"], "keep_labels": ()}}, "keep_labels .., .* set all"),
        ({**KEPT, "method": {**KEPT["method"], "name": "dedistill"}}, "with method 'diffusion'"),
        ({**KEPT, "method": {**KEPT["method"], "keep_labels": (0, 4)}}, "has 4 classes; expected"),
    ],
)
def test_what_onto_does_not_fit_is_one_message(options, message, chain, tmp_path):
    options = dict(options)
    onto = options.pop("onto", "s01_student")
    entry = learned(chain, onto=onto if onto in ("", "bogus") else str(chain / onto))
    entry.update(options)
    with pytest.raises(ValueError, match=message):
        plan.make(config_of(entry), tmp_path)


def test_a_network_of_another_shape_is_refused(chain, tmp_path):
    other = config_of(stage("other", "diffusion", num_steps=2, **RATES))
    other.model.width = 12
    assert pipeline.run(plan.make(other, tmp_path / "other"), stop=lambda: False)
    entry = learned(chain, onto=str(tmp_path / "other" / "s00_other"))
    with pytest.raises(ValueError, match="a network with other parameters or inputs; expected one"):
        plan.make(config_of(entry), tmp_path)
