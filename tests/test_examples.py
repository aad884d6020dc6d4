"""Tests of users' code: the files of examples/, run as their docstrings say, and a sampler.

The config runs at its smoke size. Names in its networks are imported only where they are allowed.
"""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from distill_jax import load
from distill_jax.config import base, pipeline, stage
from distill_jax.data import Dataset
from distill_jax.diffusion.schedule import Cosine
from distill_jax.evaluation import compare
from distill_jax.methods import Nets
from distill_jax.run import pipeline as running
from distill_jax.run import plan
from distill_jax.runtime.config_file import load_file
from distill_jax.runtime.trees import by_name
from distill_jax.sampling.loading import describe
from examples.my_dataset import Shapes
from examples.my_method import Direct
from tests.test_commands import one_message, run
from tests.toys import ROOT, constant_denoiser, make_batch

CONFIG = ROOT / "examples" / "my_config.py"
NETWORK = "examples.my_network:convolutions"
RATES = {"steps": 2, "learning_rate": 1e-3}


def never():
    return False


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns the run of examples/my_config.py:smoke, with its report."""
    workdir = epath.Path(tmp_path_factory.mktemp("examples") / "my_config")
    run = plan.make(load_file(CONFIG).get_config("smoke"), workdir)
    assert running.run(run, never)
    data, settings = run.config.data.to_dict(), run.config.evaluate.to_dict()
    assert compare.write_report(workdir, data, settings, never, allow=run.allow)
    return run


def test_a_users_config_runs_to_its_report(finished):
    content = json.loads((finished.workdir / "report.json").read_text())
    assert content["name"] == "FD-Shapes"
    assert {row["sampler"] for row in content["rows"]} == {"teacher", "student"}
    for each in finished.stages:
        assert (each.directory / "grid.png").exists()
    manifest = describe(finished.workdir, allow=[NETWORK]).manifest
    assert manifest.lineage.method["name"] == "examples.my_method:Direct"
    assert manifest.imports == (NETWORK,)  # Sampling needs neither the method nor the data.


def test_a_student_with_a_users_network_loads_only_where_it_is_allowed(finished):
    student = load(finished.workdir, allow=(NETWORK,))
    assert student.sample(jax.random.key(0), 2).shape == (2, 8, 8, 1)
    # An object in the cache is refused too.
    for allow in ((), ("examples.my_network:other",)):
        with pytest.raises(ValueError, match=rf"load\(DIR, allow=\('{NETWORK}',\)\)"):
            load(finished.workdir, allow=allow)
    again = load(finished.workdir, allow=(NETWORK,))
    assert again.network_spec is student.network_spec


def test_the_commands_import_what_their_flag_allows(finished, tmp_path):
    flags = (f"--student={finished.workdir}", f"--out={tmp_path / 'x.npy'}", "--num=2")
    assert f"--allow={NETWORK}" in one_message(*run("sample", *flags))
    code, _, stderr = run("sample", *flags, f"--allow={NETWORK}")
    assert code == 0, stderr
    data = (
        f"--student={finished.workdir}",
        f"--allow={NETWORK}",
        "--data=examples.my_dataset:Shapes",
    )
    message = one_message(*run("evaluate", *data, "--num=4"))
    assert "--allow=examples.my_dataset:Shapes on the command line" in message


def test_a_users_format_is_imported_by_the_command(finished, tmp_path):
    params = load(finished.stages[0].directory, allow=finished.allow).params
    np.savez(tmp_path / "teacher.npz", **by_name(params))
    flags = (f"--config={CONFIG}:smoke", f"--out={tmp_path / 'mine'}")
    source = str(tmp_path / "teacher.npz")
    code, _, stderr = run("teachers", "examples.my_teacher:npz", source, *flags)
    assert code == 0, stderr
    teacher = load(tmp_path / "mine", allow=(NETWORK,))
    assert teacher.manifest.stage == "imported_npz"
    for a, b in zip(*map(jax.tree.leaves, (teacher.params, params)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_users_dataset_keeps_the_contract():
    data = Shapes(size=8, count=50)
    assert isinstance(data, Dataset)
    whole = next(data.batches(seed=3, start=5, size=8))
    parts = [next(data.batches(3, 5, 8, (i, 2))) for i in range(2)]
    np.testing.assert_array_equal(whole.x, np.concatenate([part.x for part in parts]))
    np.testing.assert_array_equal(whole.index, np.arange(40, 48))
    assert not np.array_equal(whole.x, next(data.batches(3, 6, 8)).x)
    train, test = (data.images(split) for split in ("train", "test"))
    assert -1 == train.x.min() < train.x.max() == 1
    assert not np.array_equal(train.x, test.x)
    # The area of a square is 4 / pi of that of its disc.
    light = [(1 + train.x[train.label == label]).sum() for label in (0, 1)]
    np.testing.assert_allclose(light[1] / light[0], 4 / np.pi, rtol=0.2)


def test_a_users_method_has_no_loss_where_the_student_lands_with_its_teacher():
    batch = make_batch(None, {"label": jnp.zeros(4, int)}, {"label": jnp.full(1, 2)})
    for value, expected in ((0.25, 0.0), (0.75, 0.25)):
        student, teacher = (constant_denoiser(Cosine(), x) for x in (0.25, value))
        nets = Nets(dataclasses.replace(student, shape=(4, 4, 1)), teacher)
        loss, _ = Direct(teacher_steps=3).loss(jax.random.key(0), batch, nets)
        np.testing.assert_allclose(loss, expected, atol=1e-6)


SAMPLER = """
import dataclasses

import jax.numpy as jnp

from distill_jax.diffusion.trained import Sampler
from distill_jax.methods.base import traced
from distill_jax.methods.diffusion import Diffusion


@traced()
class Constant(Sampler):
    value: float
    num_steps = 1
    times = (1.0,)

    def __call__(self, key, denoiser, z, cond):
        return jnp.full_like(z, self.value)


@traced("num_steps")
class Still(Diffusion):
    def sampler(self, schedule):
        return Constant(0.5)


class Outer:
    @traced()
    class Inner(Constant):
        pass


@traced("num_steps")
class Hidden(Diffusion):
    def sampler(self, schedule):
        return Outer.Inner(0.5)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Returns configs whose first stage has a user's sampler, and the name of that sampler."""
    (tmp_path / "own_sampler.py").write_text(SAMPLER)
    monkeypatch.syspath_prepend(str(tmp_path))

    def config(*stages):
        made = base()
        made.model, made.batch_size = {"name": "mlp", "width": 8, "blocks": 1}, 8
        made.stages = pipeline(*stages)
        return made

    yield config, "own_sampler:Constant"
    del sys.modules["own_sampler"]


def test_a_users_sampler_works_in_its_run_and_elsewhere_if_allowed(own, tmp_path):
    config, name = own
    still = stage("still", "own_sampler:Still", **RATES)
    guided = stage("guided", "guided", w_range=(0.0, 1.0), new=("w_embed",), **RATES)
    run = plan.make(config(still, guided), tmp_path / "run")
    assert run.allow == ("own_sampler:Still", name)
    assert running.run(run, never)
    directory = tmp_path / "run" / "s00_still"
    student = load(directory, allow=[name])
    np.testing.assert_array_equal(student.sample(jax.random.key(0), 2), np.full((2, 8, 8, 1), 0.5))
    with pytest.raises(ValueError, match=f"--allow={name} on"):
        load(directory)
    elsewhere = config({**guided, "teacher": str(directory)})
    with pytest.raises(ValueError, match=rf"stage s00_guided: .*config.allow = \('{name}',\)"):
        plan.make(elsewhere, tmp_path / "other")
    elsewhere.allow = (name,)
    plan.make(elsewhere, tmp_path / "other")


def test_a_sampler_that_a_file_could_not_name_is_refused_before_training(own, tmp_path):
    config, _ = own
    hidden = stage("hidden", "own_sampler:Hidden", **RATES)
    with pytest.raises(ValueError, match="sampler 'own_sampler:Outer.Inner' is no name"):
        plan.make(config(hidden), tmp_path / "run")


@pytest.mark.parametrize(
    ("key", "name", "message"),
    [
        ("method", "examples.my_network:convolutions", "<function convolutions.*; expected a Meth"),
        ("method", "examples.my_method:Drect", "has no 'Drect'; did you mean 'Direct'"),
        ("model", "examples.my_networks:x", "there is no module 'examples.my_networks'"),
        ("data", "examples.my_dataset:SEEDS", "expected a function or class"),
        ("schedule", "examples.my_dataset:Shapes", "made a Shapes; expected a Schedule"),
    ],
)
def test_a_name_of_another_kind_in_a_config_is_one_message(key, name, message, tmp_path):
    config = load_file(CONFIG).get_config("smoke")
    place = config.stages.s01_direct if key == "method" else config
    place[key] = {"name": name}
    with pytest.raises(ValueError, match=f"'{name}'.*{message}"):
        plan.make(config, tmp_path)
