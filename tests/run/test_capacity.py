"""Tests of the settings with which a plan says that a stage fits into a device."""

import re

import pytest

from distill_jax.run import capacity, costs, plan
from tests.run.test_plan import GUIDED, TEACHER, config_of

MODEL = {"name": "dit", "width": 64, "blocks": 4, "heads": 2, "patch": 2, "remat": "none"}
DEVICES = 2


def measured(path, devices, flags=()):
    """Returns the run of a teacher and a guided stage, with these flags, and its costs."""
    config = config_of(TEACHER, GUIDED, batch_size=64, model=MODEL)
    for key, value in flags:
        config.update_from_flattened_dict({key: int(value) if value.isdigit() else value})
    run = plan.make(config, path / "run", devices)
    return run, costs.measure(run)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("planned"), DEVICES)


# (memory of a device over the bytes of the stage as it is, a flag that changes, devices)
CASES = {
    "halves the teacher": (0.99, "frozen_dtype", 2),
    "splits the batch": (0.3, "microbatches", 2),
    "recomputes if nothing else is enough": (0.135, "model.remat", 2),
    "takes more devices last": (0.1, "mesh.fsdp", 4),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_with_the_printed_flags_fits(case, planned, tmp_path, monkeypatch):
    share, changed, devices = CASES[case]
    most = capacity.total(planned[1]["s01_guided"]) / 1e9
    monkeypatch.setattr(capacity, "SIZES", (share * most, 2 * most))
    (line,) = capacity.show(*planned)  # The larger size has room as it is.
    assert line.startswith(f"s01_guided fits {share * most:g} GB")
    flags = re.findall(r"--config\.(\S+)=(\S+)", line)
    found = re.search(r" on (\d+) devices", line)
    assert changed in dict(flags) and devices == (int(found[1]) if found else DEVICES)
    _, cost = measured(tmp_path, devices, flags)
    assert capacity.total(cost["s01_guided"]) <= share * most * 1e9


def test_a_size_that_no_setting_reaches_is_said(planned, monkeypatch):
    monkeypatch.setattr(capacity, "SIZES", (1e-6,))
    (line,) = capacity.show(*planned)
    assert line.endswith("with no setting on up to 1024 devices")
