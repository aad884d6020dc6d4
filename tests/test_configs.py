"""Every config file: it loads at both sizes, is planned, and none of its keys goes unread."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.config import base, load_file, stage
from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.prediction import Prediction, eps_from_x
from distill_jax.diffusion.schedule import Cosine
from distill_jax.methods import METHODS, Nets
from distill_jax.run import plan
from distill_jax.sweep import load_sweep
from tests.toys import ROOT, make_batch

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
SWEEPS = sorted(f"sweeps/{path.stem}" for path in (ROOT / "configs" / "sweeps").glob("*.py"))
FILES = "run/plan run/stages run/pipeline training/roles models/build evaluation/compare"
READERS = [ROOT / "distill_jax" / f"{name}.py" for name in FILES.split()]


def load_config(name, size):
    module = load_file(ROOT / "configs" / f"{name}.py")
    return module, module.get_config(size)


@pytest.mark.parametrize("size", ["full", "smoke"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_planned_at_both_sizes(name, size, tmp_path):
    _, config = load_config(name, size)
    run = plan.make(config, tmp_path)
    assert [stage.name for stage in run.stages] == sorted(config.stages)


def test_no_round_starts_with_nothing_to_learn():
    """A student that starts as its teacher, a curved function, is some way from its target."""

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
                assert max(entry.method.w_range) > 0  # At w = 0 it is what it starts as.
    for method, num_steps in seen:  # What else they are given bends no target.
        seen[method, num_steps] = float(loss(METHODS[method](num_steps=num_steps)))
    assert len(seen) > 20
    # Longer steps have more to learn; the shortest, 1 / 4096, are 2e-7 from it.
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


def test_every_key_is_read():
    source = "\n".join(pathlib.Path(path).read_text() for path in READERS)
    for key in base():
        assert re.search(rf"(config|spec|settings)(\.{key}\b|\[\"{key}\"\])|\"{key}\"", source), key
    for key in base().evaluate:
        assert f".{key}" in source or f'settings["{key}"]' in source, key
    for key in stage("", "", steps=1, learning_rate=1.0):
        assert key == "name" or f"spec.{key}" in source, key  # The name becomes the stage's key.
