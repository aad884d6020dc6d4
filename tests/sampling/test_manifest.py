"""Tests of the manifest, which is read without any training method."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from distill_jax.diffusion.schedule import Cosine
from distill_jax.diffusion.trained import SAMPLERS, Ddim, Renoise
from distill_jax.methods import METHODS
from distill_jax.sampling.loading import load
from distill_jax.sampling.manifest import Lineage, Manifest
from distill_jax.storage import checkpoint, checksums
from tests.methods.iteration import METHOD
from tests.toys import ROOT, manifest_of

FIRST = pathlib.Path(__file__).parent / "first_student"


def through_json(manifest):
    content = json.loads(json.dumps({"format": 3, **manifest.to_json()}))
    return Manifest.from_json(content, "manifest.json")


@pytest.mark.parametrize("name", METHODS)
def test_a_manifest_survives_json_with_the_sampler_of_every_method(name):
    manifest = manifest_of(METHOD[name], fake=7, metrics={"protocol": "toy", "rows": [{"w": 0.5}]})
    again = through_json(manifest)
    assert again.trained == manifest.trained
    assert again.spec == manifest.spec
    assert json.dumps(again.to_json()) == json.dumps(manifest.to_json())


@pytest.mark.parametrize("name", METHODS)
def test_options_of_a_method_may_come_go_and_change_their_names(name, tmp_path, chain):
    """A student on disk is read by its sampler; the options of its method are only text."""
    options = dataclasses.asdict(METHOD[name])
    renamed = {f"new_{key}": value for key, value in options.items()}
    fewer = dict(list(options.items())[1:])
    directory = tmp_path / "student"
    shutil.copytree(chain / "s07_n0001" / "final", directory / "final")
    x = [load(chain / "s07_n0001").sample(jax.random.key(0), 2, w=1.0)]
    path = directory / "final" / "manifest.json"
    content = json.loads(path.read_text())
    for changed in ({**options, "added": 1}, renamed, fewer, {}):
        content["lineage"]["method"] = {"name": name, **changed}
        path.write_text(json.dumps(checksums.with_checksum(content)))
        x.append(load(directory).sample(jax.random.key(0), 2, w=1.0))
    for other in x[1:]:
        np.testing.assert_array_equal(x[0], other)


def test_the_first_student_of_this_format_loads_for_ever():
    """tests/sampling/first_student: digits_guided:smoke, its last stage, as it was written."""
    student = load(FIRST)
    assert student.trained.sampler == Ddim(1)
    assert student.trained.guidance.w_range == (0.0, 4.0)
    k_z, _ = jax.random.split(jax.random.key(0))
    x = student.decode(jax.random.normal(k_z, (2, 8, 8, 1)), label=3, w=1.0)
    np.testing.assert_allclose(x, np.load(FIRST / "samples.npy"), atol=1e-5)


def test_a_student_of_the_format_before_is_refused_in_one_line(tmp_path):
    final = tmp_path / "final"
    final.mkdir()
    before = {"format": 2, "method": {"name": "progressive"}, "num_steps": 4}
    (final / "manifest.json").write_text(json.dumps(checksums.with_checksum(before)))
    with pytest.raises(ValueError, match="has format 2, which names a training method and no") as e:
        load(tmp_path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("stage", 3, "stage is 3; expected a name"),
        ("trained", None, "trained is None; expected an object"),
        ("distilled", "yes", "distilled is 'yes'; expected true or false"),
        ("data", [], r"data is \[\]; expected None or an object"),
        ("spec", {"x": {}}, r"spec.x.shape is None; expected \[height"),
        ("lineage", {"method": {"name": "sid"}, "mother": 1}, "cannot be read: .*mother"),
    ],
)
def test_a_field_of_another_kind_is_named(field, value, message):
    content = {"format": 3, **manifest_of(METHOD["diffusion"]).to_json(), field: value}
    with pytest.raises(ValueError, match=message):
        Manifest.from_json(content, "manifest.json")


def test_a_sampler_that_is_not_there_is_named_with_those_that_are():
    content = {"format": 3, **manifest_of(METHOD["diffusion"]).to_json()}
    content["trained"]["sampler"] = {"name": "dimm", "num_steps": 4}
    with pytest.raises(ValueError, match="unknown sampler 'dimm'.*ddim"):
        Manifest.from_json(content, "manifest.json")


def test_every_sampler_has_the_times_of_its_calls():
    options = {"renoise": {"times": (1.0, 0.5)}, "signal": {"t_min": 0.0, "t_max": 1.0}}
    for name, kind in SAMPLERS.items():
        sampler = kind(**options.get(name, {"num_steps": 4}))
        assert len(sampler.times) == sampler.num_steps
        assert all(0 <= t <= 1 for t in sampler.times)


def test_a_generator_of_one_call_may_be_repeated_and_one_of_several_not():
    assert Renoise((0.8,)).with_steps(2) == Renoise((0.8, 0.4))
    assert Renoise((0.8, 0.4)).with_steps(3) is None


def test_a_finished_network_needs_no_trainer():
    code = "import json, sys, distill_jax.sampling.loading; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = [name for name in json.loads(done.stdout) if name.startswith("distill_jax.")]
    rooms = {name.split(".")[1] for name in loaded}
    assert rooms == {"sampling", "models", "diffusion", "storage", "runtime", "typing"}
    assert "optax" not in json.loads(done.stdout)


def test_a_student_is_summed_up_in_a_few_lines(chain):
    text = repr(load(chain / "s05_n0004"))
    assert len(text.splitlines()) <= 5
    for part in ("s05_n0004", "progressive", "w from 0 to 4", "num_steps=4", "8x8x1, 10 classes"):
        assert part in text


def test_what_a_run_writes_is_what_a_student_reads(chain):
    content = checkpoint.read_manifest(chain / "s05_n0004" / "final")
    student = load(chain / "s05_n0004")
    written = {key: content[key] for key in student.manifest.to_json()}
    assert json.loads(json.dumps(student.manifest.to_json())) == written
    assert student.manifest.lineage == Lineage(**content["lineage"])
    assert student.trained == METHODS["progressive"](num_steps=4, w_range=(0.0, 4.0)).trained(
        Cosine()
    )
