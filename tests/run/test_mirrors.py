"""Tests of the copies of a run's logs in W&B and MLflow, where these are installed."""

import json

import pytest
from etils import epath

from distill_jax.run import mirrors

LINES = [
    {"step": 2, "loss": 0.5, "learning_rate": 1e-3},
    {"step": 4, "loss": float("inf"), "learning_rate": 1e-3},
    {"step": 6, "loss": 0.3, "learning_rate": 0},
]
MEASURED = {"step": 4, "protocol": "few samples", "distance": 1.5, "best": True}


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def workdir(tmp_path):
    """The workdir of a run of two stages, the second of which has not begun to log."""
    found = epath.Path(tmp_path / "run")
    stage = found / "s00_teacher"
    stage.mkdir(parents=True)
    (found / "config.json").write_text(json.dumps({"seed": 3, "data": {"name": "digits"}}))
    write(stage / "scalars.jsonl", LINES)
    write(stage / "quality.jsonl", [MEASURED])
    (found / "report.json").write_text("{}")
    return found


def test_lines_are_in_the_order_of_their_iterations_and_have_finite_numbers_only(workdir):
    found = mirrors._lines(workdir / "s00_teacher", {})
    assert found == [
        (2, "scalars", {"loss": 0.5, "learning_rate": 1e-3}),
        (4, "scalars", {"learning_rate": 1e-3}),
        (4, "quality", {"quality/distance": 1.5}),
        (6, "scalars", {"loss": 0.3, "learning_rate": 0.0}),
    ]
    later = mirrors._lines(workdir / "s00_teacher", {"scalars": 4})
    assert [line[:2] for line in later] == [(4, "quality"), (6, "scalars")]


def test_mlflow_gets_each_line_once(workdir, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason='needs pip install -e ".[mlflow]"')
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/runs")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # The small library has no database.
    monkeypatch.chdir(tmp_path)
    assert mirrors.mirror(workdir, "mlflow", "ours") == 4
    assert mirrors.mirror(workdir, "mlflow", "ours") == 0
    write(workdir / "s00_teacher" / "scalars.jsonl", [*LINES, {"step": 8, "loss": 0.2}])
    assert mirrors.mirror(workdir, "mlflow", "ours") == 1
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("ours").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.run_name == "run/s00_teacher"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(each.step, each.value) for each in history] == [(2, 0.5), (6, 0.3), (8, 0.2)]
    assert [f.path for f in client.list_artifacts(run.info.run_id)] == [
        "config.json",
        "report.json",
    ]


class Broken(mirrors.Service):
    """A service whose network is gone after one line."""

    def begin(self, stage):
        self.got = []

    def log(self, step, values):
        if self.got:
            raise ConnectionError
        self.got.append(step)

    def files(self, paths):
        raise AssertionError("it is not reached")

    def end(self):
        pass


def test_a_line_that_was_sent_before_an_error_is_not_sent_again(workdir, monkeypatch):
    monkeypatch.setitem(mirrors.SERVICES, "json", Broken)  # The name of a library that is there.
    for sent in (2, 4):
        with pytest.raises(ConnectionError):
            mirrors.mirror(workdir, "json", "ours")
        position = json.loads((workdir / "mirror.json").read_text())["json"]["s00_teacher"]
        assert position["scalars"] == sent


def test_wandb_gets_each_line_once(workdir, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason='needs pip install -e ".[wandb]"')
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    assert mirrors.mirror(workdir, "wandb", "ours") == 4
    assert mirrors.mirror(workdir, "wandb", "ours") == 0
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    content = file.read_bytes()
    for key in (b"quality/distance", b"learning_rate", b"run/s00_teacher"):
        assert key in content


@pytest.mark.parametrize("name", mirrors.SERVICES)
def test_a_service_without_its_library_says_how_to_install_it(workdir, name, monkeypatch):
    monkeypatch.setattr(mirrors.importlib.util, "find_spec", lambda name: None)
    message = rf'--to={name} needs its library; run pip install -e ".\[{name}\]"'
    with pytest.raises(ValueError, match=message):
        mirrors.mirror(workdir, name, "ours")
