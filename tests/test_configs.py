"""Tests of every config: it loads and is planned at both sizes, and all of its keys are read."""

import functools
import inspect
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from distill_jax.config import IMPORTED, PAPER_UNETS, base, smoke_latents, stage
from distill_jax.config import pipeline as chained
from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.prediction import Prediction, eps_from_x
from distill_jax.diffusion.schedule import SCHEDULES, Cosine
from distill_jax.diffusion.trained import Renoise
from distill_jax.evaluation import compare
from distill_jax.methods import METHODS, Nets
from distill_jax.models import NETWORKS
from distill_jax.run import pipeline, plan
from distill_jax.runtime.config_file import load_file
from distill_jax.sweep import load_sweep
from distill_jax.teachers import adm, edm, google_research
from tests import emoji, flows, roads, stable_diffusion
from tests.data.pictures import write_folder
from tests.teachers.test_edm import CIFAR, IMAGENET
from tests.toys import ROOT, make_batch

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def load_config(name, size):
    module = load_file(ROOT / "configs" / f"{name}.py")
    return module, module.get_config(size)


# Configs from an imported network of pixels, with the name of its directory.
ROADS = {
    name: teacher.removeprefix("teachers/")
    for name in CONFIGS
    if (teacher := load_config(name, "full")[1].teacher)
}
# Configs whose directories are the user's, and writers of small ones.
PARTS = {
    **{name: functools.partial(roads.write_parts, source=ROADS[name]) for name in ROADS},
    "folder": lambda folder: {"data.path": str(write_folder(folder))},
    **{name: emoji.write_parts for name in CONFIGS if name.startswith("emoji_")},
    "flux_swd": functools.partial(flows.write_parts, kind="flux"),
    "imagenet256_latent_guided": stable_diffusion.write_dit_parts,
    "sd15_boot": functools.partial(stable_diffusion.write_prompted_parts, stage="s00_boot"),
    "sd15_guided": stable_diffusion.write_parts,
    "sd15_inpaint_guided": functools.partial(stable_diffusion.write_parts, channels=9),
    "sd15_sid_lsg": functools.partial(stable_diffusion.write_prompted_parts, stage="s00_sid_lsg"),
    "sd21_guided": stable_diffusion.write_parts,
    "sd21_sid_lsg": functools.partial(stable_diffusion.write_prompted_parts, stage="s00_sid_lsg"),
    "sdxl_swd": functools.partial(stable_diffusion.write_xl_parts, stages=("s00_swd",)),
    "sd35l_swd": functools.partial(flows.write_parts, kind="sd3"),
    "sd35m_swd": functools.partial(flows.write_parts, kind="sd3"),
    "sdxl_dmd2": stable_diffusion.write_xl_parts,
}
# Parameters of students at their full size: those of their teachers, and of a module for w.
PLANS = {
    "imagenet256_latent_guided": 674_816_272 + 2 * 1153 * 1152,
    "sd15_boot": 859_520_964 + 2 * 1281 * 1280,
    "sd15_guided": 859_520_964 + 256 * 320,
    "sd15_inpaint_guided": 859_520_964 + 256 * 320 + 5 * 9 * 320,
    "sd15_sid_lsg": 859_520_964,
    "sd21_guided": 865_910_724 + 256 * 320,
    "sdxl_dmd2": 2_567_463_684,
    "sd21_sid_lsg": 865_910_724,
}
PACKAGE = str(ROOT / "distill_jax")
SWEEPS = sorted(f"sweeps/{path.stem}" for path in (ROOT / "configs" / "sweeps").glob("*.py"))


@pytest.mark.parametrize("size", ["full", "smoke"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_planned_at_both_sizes(name, size, tmp_path):
    _, config = load_config(name, size)
    if name in PARTS and size == "full":
        config.update_from_flattened_dict(PARTS[name](tmp_path / "parts"))
    run = plan.make(config, tmp_path)
    assert [stage.name for stage in run.stages] == sorted(config.stages)


@pytest.mark.parametrize("name", PLANS)
def test_a_published_network_is_planned_without_its_directory(name, tmp_path):
    _, config = load_config(name, "plan")
    config.data.size = 64  # A network of any size has the same parameters.
    run = plan.make(config, tmp_path)
    assert f"{PLANS[name]:,} parameters" in plan.show(run)
    with pytest.raises(ValueError, match="codec.path is ''; expected the directory of an autoenc"):
        run.codec.kind.fit(np.zeros((1, 64, 64, 3)))
    full = load_config(name, "full")[1]
    names = [entry.name for entry in config.stages.values()]
    assert [entry.name for entry in full.stages.values()] in (names, names[1:])  # Of a new teacher.
    missing = (
        rf"config.codec.path '\S+', .*{min(full.stages)}.teacher '\S+'.*: nothing is there. .*:plan"
    )
    with pytest.raises(ValueError, match=missing):
        plan.make(full, tmp_path)


@pytest.mark.parametrize("name", ROADS)
def test_a_road_has_the_same_stages_for_plans_without_its_network(name):
    full, planned = (load_config(name, size)[1] for size in ("full", "plan"))
    assert (planned.teacher, planned.model) == ("", full.model)
    kinds, others = (
        [entry.method.name for entry in config.stages.values()] for config in (full, planned)
    )
    assert others in (kinds, ["diffusion", *kinds])
    assert (full.schedule, full.parameterization) == (planned.schedule, planned.parameterization)


def test_sizes_for_plans_are_those_of_the_published_files():
    """They are what the readers make of the options in EDM's files, and of their own tables."""

    def whole(model):
        known = inspect.signature(NETWORKS[model["name"]]).parameters
        return {key: p.default for key, p in known.items() if key != "spec"} | model

    dropout = {"dropout": 0.1}  # Of the class's default, which EDM's files of ImageNet leave out.
    read = {
        "edm_cifar10": edm._model(edm._options(CIFAR), False),
        "edm_imagenet64": {**edm._model(edm._options(IMAGENET), False), **dropout},
        "adm_imagenet64": adm._model(*next(iter(adm.RELEASED.items()))),
    }
    for name in ("cifar10", "lsun128"):
        model = {**google_research.UNET, **PAPER_UNETS[name], "dropout": 0.0}
        read[f"google_{name}"] = model
        assert IMPORTED[f"google_{name}"][2] == google_research.PUBLISHED[name]["parameterization"]
    assert {name: whole(each[0]) for name, each in IMPORTED.items()} == {
        name: whole(model) for name, model in read.items()
    }


SCALEWISE = {"flux_swd": 11_891_178_560, "sd35l_swd": 8_056_627_520, "sd35m_swd": 2_243_171_520}


@pytest.mark.parametrize("name", SCALEWISE)
def test_a_scale_wise_student_is_planned_without_directories(name, tmp_path):
    _, config = load_config(name, "plan")
    run = plan.make(config, tmp_path)
    assert f"{SCALEWISE[name]:,} parameters" in plan.show(run)
    swd = run.stages[-1]
    assert swd.trained.sampler.resolutions == (64, 80, 96, 128)
    # The noise levels of the released scripts.
    levels = jax.vmap(swd.roles.student.schedule.sigma)(jnp.asarray(swd.trained.sampler.times))
    np.testing.assert_allclose(levels, (1.0, 0.8959, 0.7371, 0.6022), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="config.codec.path '.*s00_swd.teacher '.*:plan"):
        plan.make(load_config(name, "full")[1], tmp_path)


def test_sdxl_is_distilled_scale_wise_by_mmd_only(tmp_path):
    _, config = load_config("sdxl_swd", "plan")
    run = plan.make(config, tmp_path)
    assert "2,567,463,684 parameters" in plan.show(run)
    swd = run.stages[-1]
    assert not swd.roles.fake
    assert swd.trained.sampler == Renoise((1.0, 0.8, 0.6, 0.4), (64, 80, 96, 128))


@pytest.mark.parametrize(
    ("size", "levels"),
    [("2", (1.0, 0.7371)), ("6", (1.0, 0.9454, 0.8959, 0.7904, 0.7371, 0.6022))],
)
def test_the_other_sizes_of_sd35m_have_other_calls(size, levels):
    _, config = load_config("sd35m_swd", size)
    method, flow = config.stages.s00_swd.method, SCHEDULES["rectified_flow"](config.schedule.shift)
    assert len(method.times) == len(method.resolutions) == int(size)
    found = jax.vmap(flow.sigma)(jnp.asarray(method.times))
    np.testing.assert_allclose(found, levels, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("size", "last"), [("stochastic", "s0002"), ("two_students", "n0001")])
def test_the_other_sizes_of_stable_diffusion_are_planned(size, last, tmp_path):
    run = plan.make(smoke_latents(load_config("sd15_guided", size)[1]), tmp_path)
    trained = run.stages[-1].trained
    assert run.stages[-1].name.endswith(last)
    assert trained.guidance == (((2.0, 14.0), 0.0, False), (None, 0.0, True))[last == "n0001"]


@pytest.mark.parametrize("name", ["emoji_boot", "emoji_dmd2", "emoji_sid_lsg", "emoji_swd"])
def test_students_of_emoji_have_adapters_at_the_size_lora(name, tmp_path):
    config = load_config(name, "lora")[1]
    config.update_from_flattened_dict(PARTS[name](tmp_path / "parts"))
    assert plan.make(config, tmp_path).stages[-1].roles.trained == ("teacher", 8)


def test_no_round_starts_with_nothing_to_learn():
    """A student that starts as a copy of a nonlinear teacher differs from its target."""

    def predict(z, t, cond, key=None):
        x = jnp.tanh(2 * z + t[:, None])
        return Prediction(x, eps_from_x(z, x, Cosine(), t))

    net = Denoiser(Cosine(), predict)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 2)), jnp.float32)
    batch, nets = make_batch(x, {}, {}), Nets(net, net)
    loss = jax.jit(lambda method: method.loss(jax.random.key(0), batch, nets)[0])
    seen = {}
    for name in CONFIGS:
        for entry in load_config(name, "full")[1].stages.values():
            if entry.method.name in ("encoder", "progressive", "stochastic"):
                seen[entry.method.name, entry.method.num_steps] = None
            elif entry.method.name == "guided":
                assert max(entry.method.w_range) > 0  # At w = 0 the student equals its start.
    for method, num_steps in seen:  # Other options do not change the target.
        seen[method, num_steps] = float(loss(METHODS[method](num_steps=num_steps)))
    assert len(seen) > 20
    # Longer steps have larger differences; that of the shortest, 1 / 4096, is 2e-7.
    assert min(seen.values()) > 1e-8, min(seen, key=seen.get)


@pytest.mark.parametrize("name", [*CONFIGS, *SWEEPS])
def test_a_size_that_a_config_does_not_have_is_refused(name):
    with pytest.raises(ValueError, match="unknown size 'smok' of the config; known: .*smoke"):
        if name in SWEEPS:
            load_sweep(str(ROOT / "configs" / f"{name}.py:smok"))
        else:
            load_config(name, "smok")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_names_its_paper_and_its_command(name):
    module, _ = load_config(name, "full")
    assert "arXiv:" in module.__doc__
    assert f"--config=configs/{name}.py" in module.__doc__


class Recorded(dict):
    """A copy of a part of a config that records the keys which are read."""

    def __init__(self, content, path="", reads=None):
        super().__init__(content)
        self.path, self.reads = path, set() if reads is None else reads

    def __getitem__(self, key):
        self.reads.add(f"{self.path}.{key}")
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.reads.add(f"{self.path}.{key}")
        return super().get(key, default)


class Reads:
    """The recorded dotted keys of a config that the package reads, as config.key or config["key"].

    Checks and copies of a value do not count as reads. Every stage is called "stage".
    """

    GETITEM, GETATTR = ConfigDict.__getitem__, ConfigDict.__getattr__
    TO_DICT = ConfigDict.to_dict

    def __init__(self, config):
        self.keys = set()
        self.paths = dict(self.parts(config, "config"))

    def parts(self, config, path):
        yield id(config), path
        for key in config:
            part = Reads.GETITEM(config, key)
            if isinstance(part, ConfigDict):
                yield from self.parts(part, "stage" if path.endswith("stages") else f"{path}.{key}")

    def note(self, config, key):
        path, reader = self.paths.get(id(config)), sys._getframe(2).f_code.co_filename
        if path and reader.startswith(PACKAGE) and not reader.endswith("validation.py"):
            self.keys.add(f"{path}.{key}")

    def record(self, monkeypatch):
        """Starts to record."""

        def getitem(config, key):
            self.note(config, key)
            return Reads.GETITEM(config, key)

        def getattribute(config, key):
            self.note(config, key)
            return Reads.GETATTR(config, key)

        def to_dict(config, *inner):
            copy, path = Reads.TO_DICT(config, *inner), self.paths.get(id(config))
            return Recorded(copy, path, self.keys) if path and not inner else copy

        monkeypatch.setattr(ConfigDict, "__getitem__", getitem)
        monkeypatch.setattr(ConfigDict, "__getattr__", getattribute)
        monkeypatch.setattr(ConfigDict, "to_dict", to_dict)


def leaves(tree, path):
    """Yields dotted keys of a config's values; a name and its options are one key."""
    if not isinstance(tree, (ConfigDict, dict)) or not tree or ("name" in tree and "." in path):
        return {path}
    return {key for name, value in tree.items() for key in leaves(value, f"{path}.{name}")}


def test_every_key_is_read(monkeypatch, tmp_path):
    """The plan of two stages, their run or its report reads every key by its name."""
    rates = {"steps": 1, "learning_rate": 1e-3}
    config = base()
    config.data = {"name": "mixture", "count": 64}
    config.model = {"name": "mlp", "width": 8, "blocks": 1}
    config.batch_size = 8
    config.evaluate.update(num_samples=16, every=1, few=16, keep_best="distance")
    first = stage("first", "diffusion", num_steps=2, **rates)
    first.update(posthoc=(0.05, 0.1), snapshot_every=1)
    config.stages = chained(first, stage("second", "progressive", num_steps=1, **rates))
    reads = Reads(config)
    reads.record(monkeypatch)
    run = plan.make(config, tmp_path)
    assert plan.show(run)
    assert pipeline.run(run, stop=lambda: False)
    data, settings = config.data.to_dict(), config.evaluate.to_dict()
    assert compare.write_report(run.workdir, data, settings, stop=lambda: False)
    known = leaves(base(), "config") | leaves(first, "stage")
    assert known - reads.keys == {"stage.name"}  # The name becomes the stage's key.
