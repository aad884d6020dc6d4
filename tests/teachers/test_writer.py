import re

import jax
import numpy as np
import pytest

from distill_jax.config import pipeline as pipeline_of
from distill_jax.config import stage
from distill_jax.methods import METHODS
from distill_jax.run import pipeline, plan, train
from distill_jax.sampling.loading import load
from distill_jax.storage import checkpoint
from distill_jax.teachers import writer
from distill_jax.teachers.google_research import read
from tests.teachers.toys import MLP, config_of, params_of, save

CONFIG = config_of(MLP)
SOURCE = {"format": "google_research", "file": "state", "sha256": "0"}
RATES = {"steps": 2, "learning_rate": 1e-3}


def imported(folder, num_sample_steps=0, config=CONFIG):
    return read(save(folder / "state", params_of(config), num_sample_steps), config.to_dict())


def write(network, out, config=CONFIG):
    return writer.write(network, SOURCE, config.data.to_dict(), out)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The directory of an imported teacher."""
    folder = tmp_path_factory.mktemp("teacher")
    write(imported(folder), folder / "out")
    return folder / "out"


def chain(*stages):
    config = config_of(MLP)
    config.batch_size = 8
    config.stages = pipeline_of(*stages)
    return config


def test_an_imported_network_is_a_student(teacher):
    student = load(teacher)
    jax.tree.map(np.testing.assert_array_equal, student.params, params_of(CONFIG))
    assert not student.can_be_guided
    assert student.manifest.lineage.source == SOURCE
    assert student.sample(jax.random.key(0), 2, num_steps=1).shape == (2, 4, 4, 1)


def test_an_imported_student_keeps_its_number_of_steps(tmp_path):
    write(imported(tmp_path, num_sample_steps=8), tmp_path / "out")
    student = load(tmp_path / "out")
    assert student.trained.sampler.times[0] == 1
    with pytest.raises(ValueError, match="this student was made for 8"):
        student.sample(jax.random.key(0), 2, num_steps=16)
    halving = stage("half", "progressive", teacher=str(tmp_path / "out"), num_steps=2, **RATES)
    with pytest.raises(ValueError, match="ddim steps needs a teacher of 4"):
        plan.make(chain(halving), tmp_path / "run")


@pytest.mark.parametrize("frozen_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("init", "lora"), [("", 0), ("other", 0), ("", 1)])
def test_a_teacher_in_half_precision_stays_so_and_its_student_is_trained_in_single(
    init, lora, frozen_dtype, tmp_path, monkeypatch
):
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), params_of(CONFIG))
    for name in ("out", "other"):
        write(read(save(tmp_path / "state", half), CONFIG.to_dict()), tmp_path / name)
    options = {"teacher": str(tmp_path / "out"), "init": init and str(tmp_path / init)}
    options["lora"] = lora
    config = chain(stage("half", "progressive", num_steps=2, **options, **RATES))
    config.frozen_dtype = frozen_dtype
    planned, used = plan.make(config, tmp_path / "run"), []
    make_iterate = train.make_iterate
    monkeypatch.setattr(
        train, "make_iterate", lambda *given: used.append(given[2]) or make_iterate(*given)
    )
    assert pipeline.run(planned, stop=lambda: False)
    (frozen,) = used
    kept = {"float32": "float16"}.get(frozen_dtype, frozen_dtype)
    assert frozen["teacher"]["input"]["kernel"].dtype == kept
    assert frozen["teacher"]["input"]["bias"].dtype == np.float16
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), frozen["teacher"])
    like = planned.stages[0].shapes["teacher"]
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), like)
    params = load(tmp_path / "run", parts=[tmp_path / "out"]).params
    trained = params.adapters if lora else params
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {np.dtype("float32")}


def test_a_teacher_whose_weights_are_gone_ends_the_plan_in_one_message(tmp_path):
    final = write(imported(tmp_path), tmp_path / "out")
    (final / "params").rmtree()
    config = chain(stage("half", "progressive", teacher=str(final), num_steps=2, **RATES))
    with pytest.raises(ValueError, match=r"stage s00_half: .*params cannot be read \(.*\); move"):
        plan.make(config, tmp_path / "run")


def test_a_directory_with_a_network_is_left_alone(teacher, tmp_path):
    before = (teacher / "final" / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="holds a network already"):
        write(imported(tmp_path), teacher)
    assert (teacher / "final" / "manifest.json").read_bytes() == before


def test_what_is_in_the_way_is_refused(tmp_path):
    network = imported(tmp_path)
    with pytest.raises(ValueError, match="is a file; choose the name of a new directory"):
        write(network, tmp_path / "state")
    (tmp_path / "out" / "final").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds a network already"):
        write(network, tmp_path / "out")


def test_what_a_kill_left_half_written_is_replaced(tmp_path):
    left = tmp_path / ".out.partial"
    (left / "params").mkdir(parents=True)
    (left / "params" / "junk").write_text("junk")
    (tmp_path / "out").mkdir()
    final = write(imported(tmp_path), tmp_path / "out")
    assert load(final).num_classes == 3
    assert not left.exists()
    assert not (final / "params" / "junk").exists()


def test_a_teacher_without_label_dropout_is_guided_after_the_stage_that_the_message_names(
    teacher, tmp_path
):
    guided = stage("guided", "guided", new=("w_embed",), num_steps=2, **RATES)
    with pytest.raises(ValueError, match=r'stage\("finetune"') as caught:
        plan.make(chain({**guided, "teacher": str(teacher)}), tmp_path)
    line = re.search(r"stage\(.*?\)", str(caught.value))[0].replace("DIRECTORY", str(teacher))
    finetune = eval(line, {"stage": stage})
    assert finetune["method"]["label_dropout"] == 0.2
    run = plan.make(chain({**finetune, "steps": 2}, guided), tmp_path)
    assert pipeline.run(run, stop=lambda: False)
    student = load(tmp_path)
    assert student.takes_w
    assert load(tmp_path / "s00_finetune").can_be_guided
    # Whatever reads a manifest finds the same keys in one that was imported.
    manifest = checkpoint.read_manifest(teacher / "final")
    assert manifest.keys() == student.manifest.to_json().keys() | {"format", "fingerprint"}


def test_a_teacher_without_labels_cannot_be_guided(tmp_path):
    config = config_of(MLP, num_classes=0)
    write(imported(tmp_path, config=config), tmp_path / "out", config)
    plain = stage("again", "diffusion", teacher=str(tmp_path / "out"), num_steps=2, **RATES)
    guided = stage("guided", "guided", new=("w_embed",), num_steps=2, **RATES)
    run = chain(plain, guided)
    with pytest.raises(
        ValueError, match="the data has 3 classes of label, the teacher no conditions|no parameter"
    ):
        plan.make(run, tmp_path / "run")
    run.data.num_classes = 0
    with pytest.raises(ValueError, match="there is nothing to guide by"):
        plan.make(run, tmp_path / "run")
    # Labels are learned where `new` names their module.
    labelled = chain({**plain, "new": ("label_embed",)}, guided)
    assert len(plan.make(labelled, tmp_path / "run").stages) == 2


def test_a_method_that_asks_its_teacher_needs_the_teachers_labels(teacher, tmp_path):
    config = chain(stage("half", "progressive", teacher=str(teacher), num_steps=2, **RATES))
    assert METHODS["progressive"].needs_teacher
    config.data.num_classes = 5
    with pytest.raises(ValueError, match="the data has 5 classes of label, the teacher 3 classes"):
        plan.make(config, tmp_path)
