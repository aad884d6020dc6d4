"""Every config at its smoke size, from nothing to the report."""

import json

import jax
import numpy as np
import pytest
from etils import epath

from distill_jax import evaluate, pipeline, plan
from distill_jax.student import load
from tests.test_configs import CONFIGS, load_config

# The digits chain is tried by the tests of the chain.
PRESETS = [name for name in CONFIGS if not name.startswith("digits")]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_runs_to_its_report_at_smoke_size(name, tmp_path):
    _, config = load_config(name, "smoke")
    _, full = load_config(name, "full")
    workdir = epath.Path(tmp_path / name)
    run = plan.make(config, workdir)
    assert run.dataset.shape == (full.data.size, full.data.size, 3)
    assert pipeline.run(run, stop=lambda: False)
    assert evaluate.write_report(workdir, config.evaluate.to_dict(), stop=lambda: False)
    for stage in run.stages:
        lines = (stage.directory / "scalars.jsonl").read_text().splitlines()
        assert np.isfinite([json.loads(line)["loss"] for line in lines]).all()
        assert (stage.directory / "grid.png").exists()
    rows = json.loads((workdir / "report.json").read_text())["rows"]
    assert {row["num_steps"] for row in rows} >= {stage.method.num_steps for stage in run.stages}
    x = load(workdir).sample(jax.random.key(0), 2)
    assert x.shape == (2, *run.dataset.shape)
    assert np.abs(x).max() <= 1


def test_the_smoke_size_has_the_kinds_of_stages_of_the_full_size():
    for name in PRESETS:
        kinds = [
            {(stage.method.name, *stage.method) for stage in config.stages.values()}
            for config in (load_config(name, size)[1] for size in ("full", "smoke"))
        ]
        assert kinds[0] == kinds[1], name
