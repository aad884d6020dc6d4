"""Tests of the road from captions to edits: configs/shapes_guided.py, small, and commands."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import PIL.Image
import pytest
from etils import epath

from benchmarks import edits
from distill_jax.config import halvings, stage
from distill_jax.config import pipeline as pipeline_of
from distill_jax.data import scenes
from distill_jax.diffusion.denoiser import guided
from distill_jax.diffusion.trained import Guidance
from distill_jax.evaluation import adherence, beside, compare, records
from distill_jax.evaluation.protocols import make_evaluator, prompts_for
from distill_jax.run import pipeline, plan
from distill_jax.run.lock import hold
from distill_jax.sampling import editing
from distill_jax.sampling.loading import load
from distill_jax.storage import checkpoint
from tests import forks
from tests.test_configs import load_config

PROMPT = "a red circle above a blue square"


def never():
    return False


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the plan of a finished run with captions."""
    workdir = epath.Path(tmp_path_factory.mktemp("text") / "shapes")
    made = plan.make(load_config("shapes_guided", "smoke")[1], workdir)
    assert pipeline.run(made, stop=never)
    return made


@pytest.fixture(scope="module")
def student(run):
    return load(run.workdir)


@pytest.fixture(scope="module")
def teacher(run):
    return load(run.workdir / "s00_teacher")


def test_a_finished_run_has_nothing_to_do(run):
    again = plan.make(load_config("shapes_guided", "smoke")[1], run.workdir)
    assert not pipeline.run(again, stop=never)


def test_the_report_says_how_often_pictures_are_wrong(run):
    settings = {**run.config.evaluate.to_dict(), "num_samples": 40}
    data = run.config.data.to_dict()
    settings["prompts"] = prompts_for(data, 40)
    assert compare.write_report(run.workdir, data, settings, never)
    content = json.loads((run.workdir / "report.json").read_text())
    for row in content["rows"]:
        assert row["wrong"] == pytest.approx(1 - row["all"])
        assert {*adherence.ATTRIBUTES, "all, held-out pairs", "spread"} <= row.keys()
        assert ("PSNR" in row) == ("l2" in row)
    text = (run.workdir / "report.md").read_text()
    assert " after the codec, and " in text and "which is chance" in text
    shown = text.split("\nColumns: ")[1].split(".\n")[0].split("; ")
    assert len(shown) == 10 and all(scenes.parse(caption) for caption in shown)
    assert "wrong" in beside.show([records.of_workdir(run.workdir)])


def test_a_picture_depends_on_its_prompt_and_noise_only(student):
    x = student.sample(3, 3, [PROMPT, "a cyan cross", PROMPT], 1.0)
    alone = student.sample(3, 1, PROMPT, 1.0)
    np.testing.assert_allclose(x[:1], alone, atol=1e-5)
    other = student.sample(3, 1, "a cyan cross", 1.0)
    assert np.abs(other - alone).max() > 1e-4


def test_requests_that_do_not_fit_are_refused(student, teacher, chain):
    with pytest.raises(ValueError, match="expected a text, or 2 of them"):
        student.sample(0, 2)
    with pytest.raises(ValueError, match="draws from prompts: expected a text, or 2 of them"):
        student.sample(0, 2, label=1)
    digits = load(chain)
    with pytest.raises(ValueError, match="expected an integer"):
        digits.sample(0, 1, PROMPT)
    with pytest.raises(ValueError, match="part of this student's weights"):
        student.with_negative_prompt("a circle")
    with pytest.raises(ValueError, match="needs a network with captions"):
        digits.with_negative_prompt("a circle")
    assert teacher.with_negative_prompt("a red cross").text.empty == "a red cross"


def test_a_negative_prompt_replaces_the_empty_one(teacher):
    given = {"w": 2.0, "num_steps": 2, "label": PROMPT}
    plain, empty, other = (
        each.sample(0, 2, **given)
        for each in (
            teacher,
            teacher.with_negative_prompt(""),
            teacher.with_negative_prompt("a cyan cross"),
        )
    )
    np.testing.assert_array_equal(plain, empty)
    assert np.abs(plain - other).max() > 1e-4


def test_the_text_encoder_may_lie_elsewhere(run, tmp_path):
    stage = tmp_path / "s06_n0001"
    shutil.copytree(run.workdir / stage.name, stage)
    parts = [run.codec.directory, run.conditioner.directory]
    with pytest.raises(
        ValueError, match="needs .*conditioner/final.*text encoder:.*--conditioner=DIR"
    ):
        load(stage, parts=parts[:1])
    assert load(stage, parts=parts).sample(0, 1, PROMPT).shape == (1, 16, 16, 3)


def test_edits_take_prompts(run, student, teacher):
    scene = scenes.parse(PROMPT)
    x = scenes.draw([scene] * 2, np.random.default_rng(0)) / 127.5 - 1
    few = load(run.workdir / "s04_n0004")
    y = few.img2img(0, x, 2, "a green cross", 1.0)
    assert y.shape == x.shape
    mask = np.zeros((16, 16), np.float32)
    mask[3:9, 5:] = 1
    y = np.asarray(few.inpaint(0, x, mask, "a green cross", 1.0))
    np.testing.assert_array_equal(y[:, mask == 0], np.float32(x)[:, mask == 0])
    assert np.abs(y - x)[:, mask == 1].max() > 0.01
    other = "a green cross above a blue square"
    assert editing.style(teacher, student, x, PROMPT, other, 1.0, 2).shape == x.shape
    assert student.translate(teacher, x, PROMPT, other, 1.0).shape == x.shape
    kept = np.asarray(teacher.translate(teacher, x, PROMPT, PROMPT, start=2))
    assert np.abs(kept - x).mean() < 0.1


def test_an_encoder_is_distilled_on_latents_and_edits_from_its_own_times(run, tmp_path):
    for part in ("codec", "conditioner"):
        shutil.copytree(run.workdir / part, tmp_path / part)
    config = load_config("shapes_guided", "smoke")[1]
    rates = {"steps": 1, "learning_rate": 1e-3, "w_range": (0.0, 4.0)}
    teacher = str(run.workdir / "s01_guided")
    config.stages = pipeline_of(*halvings(4, 4, method="encoder", teacher=teacher, **rates))
    assert pipeline.run(plan.make(config, epath.Path(tmp_path)), stop=never)
    encoder, few = load(tmp_path), load(run.workdir / "s04_n0004")
    assert (encoder.trained.sampler.decodes, encoder.trained.num_steps) == (False, 4)
    x = scenes.draw([scenes.parse(PROMPT)] * 2, np.random.default_rng(0)) / 127.5 - 1
    near, far = (few.translate(encoder, x, PROMPT, PROMPT, 1.0, start) for start in (1, 4))
    assert near.shape == x.shape
    assert np.abs(near - far).max() > 0.01
    whole = editing.style(encoder, few, x, PROMPT, PROMPT, 1.0)
    np.testing.assert_allclose(far, whole, atol=1e-4)


def test_the_benchmark_of_edits_sees_the_prompt_the_place_and_the_rest():
    cases = edits.recoloured(24)
    red, blue = (np.array(scenes.COLOURS[name]) for name in ("red", "blue"))
    alpha = ((255.0 - cases.x) @ (255 - red) / ((255 - red) ** 2).sum())[..., None]
    mixed = 255 - alpha * (255 - red)
    is_red = (np.abs(mixed - cases.x).max(axis=-1, keepdims=True) < 1.5) & (alpha > 0)
    perfect = np.where(is_red, 255 - alpha * (255 - blue), cases.x) / 127.5 - 1
    assert edits.judge(cases, perfect)["right"].all()
    moved = edits.judge(cases, np.roll(perfect, 1, axis=1))["moved"]
    np.testing.assert_allclose(moved, 1, atol=2e-3)  # Pixels are rounded.
    unedited = edits.judge(cases, cases.images)
    assert not unedited["shown"].any()
    assert not unedited["right"].any()
    holes = edits.added(24)
    assert (holes.mask.mean(axis=(1, 2, 3)) == 0.5).all()
    empty = np.where(holes.mask > 0, 1.0, holes.images)
    found = edits.judge(holes, empty)
    assert found["rest"].all()
    assert found["place"].all()  # Hidden halves have none of the object that stays.
    assert not found["shown"].any()
    empty[:, 0, 0], empty[:, -1, -1] = 0, 0
    assert not edits.judge(holes, empty)["rest"].any()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Returns a folder with two pictures of 16x16."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, x in enumerate(scenes.draw([scenes.parse(PROMPT)] * 2, np.random.default_rng(0))):
        PIL.Image.fromarray(x).save(folder / f"{i}.png")
    return folder


SOURCE = f"--source_prompt={PROMPT}"


@pytest.mark.parametrize(
    ("task", "stage", "flags", "facts"),
    [
        ("img2img", "s04_n0004", ["--strength=0.5"], {"strength": "0.5", "steps": "4"}),
        (
            "img2img",
            "s05_n0002",
            ["--strength=0.5", "--encoder=s01_guided", SOURCE],
            {"strength": "0.5", "steps": "2", "source_prompt": PROMPT},
        ),
        (
            "style",
            "s06_n0001",
            ["--encoder=s01_guided", "--source_prompt="],
            {"steps": "1", "source_prompt": ""},
        ),
        ("inpaint", "s04_n0004", ["--mask=MASK.png"], {"steps": "4", "mask": "MASK.png"}),
        (
            "img2img",
            "s00_teacher",
            ["--num_steps=8", "--strength=0.25", "--negative_prompt=a cyan cross"],
            {"steps": "8", "negative_prompt": "a cyan cross"},
        ),
    ],
)
def test_edits_write_how_they_were_made(run, tmp_path, pictures, task, stage, flags, facts):
    mask, out = np.zeros((16, 16), np.uint8), tmp_path / "made" / "x.png"
    mask[:, 8:] = 255
    PIL.Image.fromarray(mask).save(tmp_path / "MASK.png")
    places = {"MASK": str(tmp_path / "MASK"), "s01": str(run.workdir / "s01")}
    for name, path in places.items():
        flags = [flag.replace(name, path) for flag in flags]
        facts = {key: fact.replace(name, path) for key, fact in facts.items()}
    given = [f"--student={run.workdir / stage}", f"--images={pictures}", "--w=1", "--seed=7"]
    given += ["--prompt=a green circle above a blue square", f"--out={out}"]
    code, _, stderr = forks.run("distill_jax.edit", task, *given, *flags)
    assert code == 0, stderr
    found = PIL.Image.open(out).text
    print_of = checkpoint.fingerprint(run.workdir / stage / "final")
    expected = {"task": task, "stage": stage, "seed": "7", "w": "1.0", **facts}
    expected |= {"prompt": given[4].partition("=")[2], "weights": f"{print_of:08x}"}
    assert expected.items() <= found.items()
    assert ("encoder" in found) == any("--encoder" in flag for flag in flags)


@pytest.mark.parametrize(
    ("task", "stage", "flags", "message"),
    [
        ("img2img", "s04_n0004", ["--strength=0.4"], "choose among 0.25, 0.5, 0.75, 1"),
        (
            "img2img",
            "s04_n0004",
            ["--negative_prompt=b"],
            "part of this student's weights, which a negative prompt cannot change; sample the",
        ),
        ("img2img", "s04_n0004", ["--encoder=s01_guided"], "--source_prompt is needed with --im"),
        (
            "img2img",
            "s04_n0004",
            ["--encoder=s01_guided", SOURCE, "--num_steps=6", "--strength=0.25"],
            "start is 1 of 4 steps, which is between two of the encoder's 6",
        ),
        ("style", "s06_n0001", [SOURCE], "only decodes; encode with the encoder stage"),
        ("inpaint", "s04_n0004", ["--mask=MASK.png"], "shape (4, 4); the images are 16x16: exp"),
        ("inpaint", "s04_n0004", ["--mask=GONE.png"], "GONE.png"),
    ],
)
def test_wrong_edits_are_one_message(run, tmp_path, pictures, task, stage, flags, message):
    PIL.Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "MASK.png")
    places = {"MASK": tmp_path / "MASK", "GONE": tmp_path / "GONE", "s01": run.workdir / "s01"}
    for name, path in places.items():
        flags = [flag.replace(name, str(path)) for flag in flags]
    given = [
        f"--student={run.workdir / stage}",
        f"--images={pictures}",
        "--w=1",
        "--prompt=a cross",
    ]
    code, _, stderr = forks.run(
        "distill_jax.edit", task, *given, f"--out={tmp_path / 'x.png'}", *flags
    )
    assert code == 1, stderr
    assert message in stderr.replace("\n", " ")
    assert "Traceback" not in stderr


def test_guidance_on_top_of_guidance_is_refused(student):
    with pytest.raises(ValueError, match="guidance on top of guidance"):
        z, t = jax.numpy.zeros((1, *student.shape)), jax.numpy.ones(1)
        cond, _ = student.conditions(1, PROMPT, 1.0)
        guided(student.denoiser, 1.0, {})(z, t, cond)
    fixed = student.trained._replace(guidance=Guidance(fixed_w=1.5))
    manifest = dataclasses.replace(student.manifest, trained=fixed)
    with pytest.raises(ValueError, match=r"guidance of w = 1.5 is in its weights already; leave w"):
        dataclasses.replace(student, manifest=manifest).img2img(
            0, np.zeros((1, 16, 16, 3)), 1, "", 2.0
        )


def test_commands_take_prompts_and_write_them_into_pictures(run, tmp_path):
    out = tmp_path / "x.png"
    given = [f"--student={run.workdir}", "--num=2", "--w=1", f"--out={out}"]
    code, _, stderr = forks.run("distill_jax.sample", *given, f"--prompt={PROMPT}")
    assert code == 0, stderr
    facts = PIL.Image.open(out).text
    assert facts["prompt"] == PROMPT
    assert (facts["w"], facts["seed"], facts["steps"]) == ("1.0", "0", "1")
    assert len(facts["weights"]) == 8
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\n\na blue cross\n")
    code, _, stderr = forks.run("distill_jax.sample", *given, f"--prompts={file}")
    assert code == 0, stderr
    mask = [f"--prompt={PROMPT}", "--mask=left", f"--student={run.workdir / 's04_n0004'}"]
    code, _, stderr = forks.run("distill_jax.edit", "inpaint", *given[1:], *mask)
    assert code == 0, stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "this network draws from prompts: expected --prompt='a text'"),
        (["--prompt=a", "--prompts=b"], "this network draws from prompts: expected"),
        (["--prompts=EMPTY"], "has no prompt; expected one in each line"),
        (["--prompts=MISSING"], "cannot be read as prompts"),
        (["--prompt=a red circle", "--negative_prompt=b"], "part of this student's weights"),
        (
            ["--prompt=a red circle", "--label=1"],
            "--label is given, and this network draws from prompts",
        ),
    ],
)
def test_wrong_prompts_are_one_message(run, tmp_path, flags, message):
    (tmp_path / "EMPTY").write_text("\n  \n")
    flags = [flag.replace("EMPTY", str(tmp_path / "EMPTY")) for flag in flags]
    given = [f"--student={run.workdir}", "--num=2", f"--out={tmp_path / 'x.png'}"]
    code, _, stderr = forks.run("distill_jax.sample", *given, *flags)
    assert code == 1
    assert message in stderr
    assert "Traceback" not in stderr


def prompted(run, tmp_path, *stages, **options):
    """Returns the config of a run on a file of prompts, with the parts and teacher of another."""
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(["a red circle", "", "a blue cross", f"{PROMPT} and a red circle"]))
    config = load_config("shapes_guided", "smoke")[1]
    config.data = {"name": "prompts", "path": str(file), "size": 16, **options}
    config.codec, config.conditioner = (
        {"path": str(fit.directory)} for fit in (run.codec, run.conditioner)
    )
    rates = {"learning_rate": 1e-4, "steps": 2, "teacher": str(run.workdir / "s00_teacher")}
    config.stages = pipeline_of(*(stage(*given, **{**rates, **more}) for *given, more in stages))
    return config


@pytest.mark.filterwarnings("ignore:the prompt")  # Of the grid, whose student is loaded.
def test_a_student_is_trained_from_a_file_of_prompts_without_images(run, tmp_path, capsys):
    config = prompted(run, tmp_path, ("lsg", "sid_lsg", {}))
    made = plan.make(config, tmp_path / "run")
    assert "data: prompts, 3 prompts without images, 3 different" in plan.show(made)
    assert pipeline.run(made, stop=never)
    assert "of 3 different captions are cut, or have unknown words" in capsys.readouterr().out
    again = plan.make(config, tmp_path / "run")
    assert not pipeline.run(again, stop=never)
    with hold(made.workdir) as lock:
        assert not pipeline.report(made, never, lock)
    assert (made.workdir / "s00_lsg" / "grid.png").exists()
    student = load(made.workdir, parts=made.parts)
    assert student.sample(0, 1, "a red circle").shape == (1, 16, 16, 3)
    recorded = json.loads((made.workdir / "data.json").read_text())
    assert recorded["captions"] == {"all": 3, "different": 3}
    (tmp_path / "prompts.txt").write_text("a red circle")
    with pytest.raises(ValueError, match="holds a run of other data"):
        pipeline.run(plan.make(config, tmp_path / "run"), stop=never)


@pytest.mark.parametrize(
    ("method", "more", "options", "message"),
    [
        ("diffusion", {}, {}, "method 'diffusion' trains on images, and the data have prompts on"),
        ("guided", {"w_range": (0.0, 4.0)}, {}, "method 'guided' trains on images, and the data"),
        ("sid_lsg", {}, {"size": 8}, "stand for examples 4x4x6, and the teacher draws 8x8x6; cor"),
        ("sid_lsg", {}, {"channels": 2**40}, "config.data.channels is 1099511627776; expected a w"),
    ],
)
def test_prompts_that_do_not_fit_are_one_message(run, tmp_path, method, more, options, message):
    config = prompted(run, tmp_path, ("x", method, more), **options)
    with pytest.raises(ValueError, match=message):
        plan.make(config, tmp_path / "run")


def test_boot_takes_prompts_without_images(run, tmp_path):
    more = {"w_range": (0.0, 2.0), "new": ("w_embed", "target_embed")}
    made = plan.make(prompted(run, tmp_path, ("boot", "boot", more)), tmp_path / "run")
    assert made.stages[0].method.data_free


def test_prompts_are_not_compared_with_images_in_training(run, tmp_path):
    config = prompted(run, tmp_path, ("lsg", "sid_lsg", {}))
    config.evaluate.every = 1
    with pytest.raises(ValueError, match="every compares with images, and the data have none"):
        plan.make(config, tmp_path / "run")


def test_captions_and_text_encoders_belong_together(tmp_path):
    config = load_config("shapes_guided", "smoke")[1]
    config.conditioner = {}
    with pytest.raises(ValueError, match="the data have captions"):
        plan.make(config, tmp_path)
    config = load_config("digits_guided", "smoke")[1]
    config.conditioner = {"name": "words"}
    with pytest.raises(ValueError, match="the data have none"):
        plan.make(config, tmp_path)


def test_a_network_that_would_ignore_the_text_is_refused(tmp_path):
    config = load_config("shapes_guided", "smoke")[1]
    config.model = {"name": "mlp", "width": 8, "blocks": 1}
    with pytest.raises(ValueError, match="model is 'mlp', which takes no text; take dit"):
        plan.make(config, tmp_path)


def test_another_text_encoder_is_refused(run):
    config = load_config("shapes_guided", "smoke")[1]
    config.conditioner.updates = 3
    with pytest.raises(ValueError, match="is the text encoder .* choose another --workdir"):
        plan.make(config, run.workdir).conditioner.finish(never)


def test_real_pictures_are_right_and_those_of_others_wrong():
    evaluator = make_evaluator({"name": "shapes", "count": 64, "tests": 64})
    assert evaluator.floor["test"] == 0
    assert evaluator.floor["chance"] > 0.9
    asked = prompts_for({"name": "shapes", "count": 64, "tests": 64}, 200)
    shown = [scenes.parse(text) for text in asked]
    assert [scene.held_out for scene in shown] == [False] * 120 + [True] * 40 + [False] * 40
    x = scenes.draw(shown, np.random.default_rng(0)) / 127.5 - 1
    row = evaluator.measure(np.float32(x), np.array(asked, object), np.float32(x))
    assert row["wrong"] == 0
    assert row["all, one object"] == row["all, two objects"] == row["all, held-out pairs"] == 1
    assert 0.4 < row["spread"] < 0.8
    same = np.float32(scenes.draw(shown[-1:] * 200, np.random.default_rng(0)))
    frozen = np.repeat(same[:1], 200, axis=0) / 127.5 - 1
    collapsed = evaluator.measure(np.float32(frozen), np.array([asked[-1]] * 200, object), None)
    assert collapsed["spread"] < 1e-6
