"""Tests of configs at their smoke size, up to the report: one for every method and network.

With --all every config and sweep runs.
"""

import functools
import json

import jax
import numpy as np
import pytest
from etils import epath

from distill_jax.diffusion.analytic import ring
from distill_jax.evaluation import beside, compare, records
from distill_jax.evaluation.protocols import prompts_for
from distill_jax.methods import METHODS
from distill_jax.models import NETWORKS
from distill_jax.run import pipeline, plan
from distill_jax.sampling.loading import load, load_own
from distill_jax.sweep import load_sweep, run_sweep
from tests.test_configs import CONFIGS, SWEEPS, load_config
from tests.toys import ROOT

CHAIN, DMD2 = "digits_guided", "imagenet64_dmd2"  # These have their own tests.
# One config for each set of methods and networks.
RUN = (
    "emoji_boot",
    "emoji_sid_lsg",
    "digits_consistency",
    "digits_decoupled_dmd",
    "digits_dedistill",
    "digits_encoder",
    "digits_swd",
    "imagenet64_guided",
    "mixture_dmd2",
    "mixture_scm",
    "mixture_meanflow",
)
# Networks that take long to compile, or that no config names: one stage, on images of 8x8.
UNETS = {
    "adm_unet": {"channels": 32, "blocks": 1, "multipliers": (1,), "attention": (), "heads": 1},
    "diffusers_dit": {"width": 16, "blocks": 1, "heads": 1},
    "flux": {"heads": 1, "head_dim": 16, "axes": (4, 4, 8), "blocks": 1, "singles": 1},
    "mmdit": {"heads": 1, "head_dim": 16, "blocks": 2, "dual": 1},
    "sd_unet": {"widths": (8,), "blocks": 1, "transformers": (), "heads": (1,), "groups": 4},
    "song_unet": {"channels": 8, "blocks": 1, "multipliers": (1,), "attention": ()},
    "unet": {
        "channels": 32,
        "embedding": 32,
        "blocks": 1,
        "multipliers": (1,),
        "attention": (),
        "heads": 1,
    },
}


def pytest_generate_tests(metafunc):
    if "config_file" in metafunc.fixturenames:
        own = (CHAIN, DMD2)
        everything = [name for name in (*CONFIGS, *SWEEPS) if name not in own]
        chosen = everything if metafunc.config.getoption("all") else RUN
        metafunc.parametrize("config_file", chosen)


def test_every_method_and_network_is_run_at_smoke_size():
    methods, networks = set(), {*UNETS}
    for name in (CHAIN, DMD2, *RUN):
        _, config = load_config(name, "smoke")
        for entry in config.stages.values():
            methods.add(entry.method.name)
            networks.add((entry.model or config.model).name)
    assert methods == METHODS.keys()
    assert networks == NETWORKS.keys()


def run_smoke(name, workdir, **changes):
    """Runs a config up to its report, and returns the plan, the report's rows and two samples."""
    _, config = load_config(name, "smoke")
    config.update_from_flattened_dict(changes)
    run = plan.make(config, workdir)
    assert pipeline.run(run, stop=lambda: False)
    data, settings = config.data.to_dict(), config.evaluate.to_dict()
    settings["prompts"] = prompts_for(data, settings["num_samples"])
    assert compare.write_report(workdir, data, settings, stop=lambda: False)
    for stage in run.stages:
        lines = (stage.directory / "scalars.jsonl").read_text().splitlines()
        assert np.isfinite([json.loads(line)["loss"] for line in lines]).all()
        assert (stage.directory / "grid.png").exists()
    rows = json.loads((workdir / "report.json").read_text())["rows"]
    table = beside.show([records.of_workdir(workdir)])
    assert all(row["stage"] in table for row in rows)
    student = load(workdir)
    x = student.sample(jax.random.key(0), 2, "a red circle" if student.takes_prompts else None)
    assert x.shape == (2, *student.image_shape)
    return run, rows, x


def test_a_config_runs_to_its_report_at_smoke_size(config_file, tmp_path):
    if config_file in SWEEPS:
        check_sweep(config_file, epath.Path(tmp_path))
    elif config_file.startswith("mixture"):
        check_mixture(config_file, epath.Path(tmp_path))
    else:
        check_images(config_file, epath.Path(tmp_path))


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_runs_to_its_report(name, tmp_path):
    changes = {"data.size": 8, "model": {"name": name, **UNETS[name]}}
    run, _, x = run_smoke("imagenet64_teacher", epath.Path(tmp_path), **changes)
    assert (run.stages[0].model["name"], x.shape) == (name, (2, 8, 8, 3))
    assert np.abs(x).max() <= 1


def check_images(name, workdir, **changes):
    _, full = load_config(name, "full")
    run, rows, x = run_smoke(name, workdir, **changes)
    if "size" in full.data and not full.codec:
        assert run.dataset.shape == (full.data.size, full.data.size, 3)
    decoders = [stage for stage in run.stages if stage.trained.sampler.decodes]
    assert {row["num_steps"] for row in rows} >= {stage.method.num_steps for stage in decoders}
    assert np.abs(x).max() <= 1
    return run


def check_sweep(name, workdir):
    configs = load_sweep(str(ROOT / "configs" / f"{name}.py:smoke"))
    rows = run_sweep(configs, workdir, stop=lambda: False)
    assert [row["run"] for row in rows] == list(configs)
    for row in rows:
        distances = [row[key] for key in row if " N = " in key]
        assert distances and np.isfinite(distances).all(), row
    table = (workdir / "table.md").read_text()
    assert all(run in table for run in configs)


def check_mixture(name, workdir):
    _, rows, x = run_smoke(name, workdir)
    assert np.isfinite(x).all()
    means = load(workdir / "s00_exact").params["means"]
    np.testing.assert_array_equal(means, ring().means.astype(np.float32))
    teacher, one_step, student = rows
    assert [row["num_steps"] for row in rows] == [256, 1, 1]
    assert teacher["sampler"] == one_step["sampler"] == "teacher"
    assert student["sampler"].startswith("student, ")
    assert list(student)[5:9] == ["SW2", "SW2 worst class", "recall", "l2"]
    assert teacher["SW2"] < one_step["SW2"]


def test_the_second_stage_of_dmd2_starts_from_both_networks_that_the_first_left(tmp_path):
    workdir = epath.Path(tmp_path / "dmd2")
    last = "stages.s02_gan."
    run = check_images(DMD2, workdir, **{last + "learning_rate": 1e-30, last + "keep_fake": True})
    _, first, second = run.stages
    begun = second.start.directory, second.fake_start.directory
    assert begun == (first.directory, first.directory)
    assert second.roles.discriminator == "spatial"
    # Such a learning rate changes nothing, so the second stage ends with its first weights.
    students, fakes = (
        [read(stage.directory, run.layout) for stage in (first, second)]
        for read in (load_own, functools.partial(load_own, name="fake"))
    )
    for left, begun in (students, fakes):
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(begun), strict=True):
            np.testing.assert_array_equal(a, b)
    different = [
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(students[0]), jax.tree.leaves(fakes[0]), strict=True)
    ]
    assert all(different), "the fake is no copy of the student"
    manifest = load(second.directory).manifest
    assert manifest.lineage.init == manifest.lineage.init_fake == "../../s01_dmd2/final"
    path = first.directory / "final" / "manifest.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in kept.items() if k not in ("fake", "checksum")}))
    with pytest.raises(ValueError, match="'dmd2', and the final/ there has no fake network; .*=T"):
        plan.make(run.config, workdir)


def test_the_smoke_size_has_the_kinds_of_stages_of_the_full_size():
    for name in CONFIGS:
        kinds = [
            {(stage.method.name, *stage.method) for stage in config.stages.values()}
            for config in (load_config(name, size)[1] for size in ("full", "smoke"))
        ]
        new = {kind for kind in kinds[1] if kind[0] == "diffusion"}  # In place of a directory.
        assert kinds[0] <= kinds[1] <= kinds[0] | new, name
