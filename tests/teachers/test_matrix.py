"""Tests of the table in docs/teachers.md: which method takes which imported network."""

import re

import pytest

from distill_jax.config import IMPORTED, halvings, stage
from distill_jax.run import plan
from tests.roads import write
from tests.run.test_plan import RATES, config_of
from tests.toys import ROOT

WORKS, TUNED, REFUSED = "works", "after fine-tuning", "refused"
SIDE, CLASSES = 8, 5
# Rows of the table, each a stage from the imported network.
METHODS = {
    "`guided`": stage("a", "guided", new=("w_embed",), **RATES),
    "`progressive`, to 1 step": halvings(1, **RATES)[0],
    "`progressive`, to 16 steps": halvings(16, 16, **RATES)[0],
    "`stochastic`, to 16 steps": stage("a", "stochastic", num_steps=16, **RATES),
    "`encoder`": stage("a", "encoder", num_steps=16, **RATES),
    "`boot`": stage("a", "boot", new=("target_embed",), **RATES),
    "`boot` with w": stage("a", "boot", w=1.0, new=("target_embed",), **RATES),
    "`sid_lsg` with kappa 1 (SiD)": stage("a", "sid_lsg", **RATES),
    "`sid_lsg` with another kappa": stage("a", "sid_lsg", kappas=1.5, **RATES),
    "`dmd2`": stage("a", "dmd2", gan_weight=1e-3, **RATES),
    "`dmd2` with w": stage("a", "dmd2", gan_weight=1e-3, w=1.0, **RATES),
    "`decoupled_dmd` with w": stage("a", "decoupled_dmd", w=1.0, **RATES),
    "`consistency`": stage("a", "consistency", **RATES),
    "`consistency` with w": stage("a", "consistency", w=1.0, **RATES),
    "`scm`": stage("a", "scm", **RATES),
    "`meanflow`": stage("a", "meanflow", new=("target_embed",), **RATES),
    "`meanflow` with w": stage("a", "meanflow", w=1.0, new=("target_embed",), **RATES),
    "`dedistill`, meant for few-step students": stage("a", "dedistill", num_steps=8, **RATES),
    "`swd` at one size": stage("a", "swd", times=(0.9, 0.5), **RATES),
    "`swd` at several sizes": stage("a", "swd", times=(0.9, 0.5), resolutions=(4, 8), **RATES),
}
NETWORKS = {
    "`edm`": "edm_cifar10",
    "`adm`": "adm_imagenet64",
    "`google_research` CIFAR-10": "google_cifar10",
    "`google_research` LSUN": "google_lsun128",
}


def accepted(stages, teacher, head, labelled, folder):
    """Returns whether a chain from a network is planned, and nothing warns of its first call."""
    data = {"name": "noise", "size": SIDE, "count": 16, "num_classes": CLASSES if labelled else 0}
    config = config_of(*stages, data=data, teacher=teacher, parameterization=head)
    try:
        text = plan.show(plan.make(config, folder))
    except ValueError:
        return False
    return "which says nothing about the image" not in text


def cell(entry, teacher, source, folder):
    """Returns what becomes of a stage from a network: alone, after a stage that fine-tunes it."""
    labelled = not source.startswith("google")
    if accepted([{**entry, "teacher": teacher}], teacher, "v", labelled, folder):
        return WORKS
    options = dict(label_dropout=0.1, new=() if labelled else ("class_emb",), **RATES)
    sizes = entry["method"].get("resolutions", ())
    tune = stage("tune", "diffusion", teacher=teacher, resolutions=sizes, **options)
    heads = IMPORTED[source][2], "v"
    tuned = any(accepted([tune, entry], teacher, head, True, folder) for head in heads)
    return TUNED if tuned else REFUSED


@pytest.mark.parametrize("network", NETWORKS)
def test_the_table_of_methods_and_imported_networks_is_true(network, tmp_path):
    lines = (ROOT / "docs" / "teachers.md").read_text().splitlines()
    rows = [re.split(r" *\| *", line.strip("| ")) for line in lines if line.startswith("| `")]
    (titles,) = (re.split(r" *\| *", line.strip("| ")) for line in lines if "| method |" in line)
    column = titles.index(network)
    table = {row[0]: row[column] for row in rows if row[0] in METHODS and len(row) == len(titles)}
    source = NETWORKS[network]
    teacher = write(source, tmp_path / source).convert(tmp_path / source / "teacher")
    found = {name: cell(entry, teacher, source, tmp_path) for name, entry in METHODS.items()}
    assert found == {name: text.partition(",")[0] for name, text in table.items()}
