"""Tests of a plan: bad input is one message with value, expectation and remedy."""

import jax
import pytest

from distill_jax.config import base, pipeline, stage
from distill_jax.diffusion.schedule import Cosine
from distill_jax.diffusion.spec import image_data
from distill_jax.methods import METHODS
from distill_jax.models.build import make_network
from distill_jax.run import plan
from distill_jax.run.stages import check_alike, check_finetuned
from distill_jax.training.update import all_updates

RATES = {"steps": 2, "learning_rate": 1e-3}
TEACHER = stage("teacher", "diffusion", num_steps=8, **RATES)
GUIDED = stage("guided", "guided", w_range=(0.0, 4.0), new=("w_embed",), **RATES)
ENCODER = stage("encoder", "encoder", num_steps=8, **RATES)


SWD = stage("swd", "swd", times=(1.0, 0.5), **RATES)
SID = stage("sid", "sid_lsg", **RATES)
SONG = {"name": "song_unet", "channels": 8, "blocks": 1, "multipliers": (1,), "attention": ()}
DIT = {"name": "dit", "width": 8, "blocks": 1, "heads": 1}
SD_UNET = {"name": "sd_unet", "widths": (8,), "transformers": (), "heads": (1,), "groups": 4}
MIXTURE = {"name": "mixture"}


def halved(num_steps, **options):
    return stage("half", "progressive", num_steps=num_steps, w_range=(0.0, 4.0), **RATES, **options)


def config_of(*stages, **changes):
    config = base()
    config.model = {"name": "mlp", "width": 8, "blocks": 1}
    config.batch_size = 8
    config.stages = pipeline(*stages)
    with config.unlocked():
        for key, value in changes.items():
            config.update_from_flattened_dict({key.replace("__", "."): value})
    return config


def test_a_good_config_is_planned_stage_by_stage(tmp_path):
    run = plan.make(config_of(TEACHER, GUIDED, halved(4), halved(2)), tmp_path)
    assert [stage.name for stage in run.stages] == [
        "s00_teacher",
        "s01_guided",
        "s02_half",
        "s03_half",
    ]
    assert [stage.teacher and stage.teacher.directory.name for stage in run.stages] == [
        None,
        "s00_teacher",
        "s01_guided",
        "s02_half",
    ]
    assert not any(stage.finished for stage in run.stages)
    text = plan.show(run)
    for word in ("s02_half", "progressive", "0 to 4", "to do", "parameters (mlp)", str(tmp_path)):
        assert word in text
    assert not (tmp_path / "s00_teacher").exists()


def test_a_plan_says_the_calls_of_a_teacher_that_is_sampled_by_heuns_method(tmp_path):
    teacher = stage("teacher", "diffusion", num_steps=4, solver="heun", steps=3, learning_rate=1e-3)
    config = config_of(teacher)
    config.evaluate.update(every=3, few=100, w=(1.0,))
    text = plan.show(plan.make(config, tmp_path))
    assert "4 (7 calls)" in text
    # Ten labels, of which some are drawn again for diversity; two calls for guidance.
    (line,) = (line for line in text.splitlines() if "measured in training" in line)
    assert line.endswith(f"1 time 100 samples, {100 * 7 * 2:,} network calls")


@pytest.mark.parametrize(
    ("head", "dtype", "warned"),
    [("x", "bfloat16", True), ("v", "bfloat16", False), ("x", "float32", False)],
)
def test_a_plan_warns_of_x_in_bfloat16(head, dtype, warned, tmp_path):
    model = {"name": "dit", "width": 32, "blocks": 1, "heads": 2, "patch": 4, "dtype": dtype}
    run = plan.make(config_of(TEACHER, model=model, parameterization=head), tmp_path)
    assert ("warning: the network of s00_teacher computes in bfloat16" in plan.show(run)) == warned


def test_halvings_share_networks_so_that_they_share_a_program(tmp_path):
    run = plan.make(config_of(TEACHER, GUIDED, halved(4), halved(2)), tmp_path)
    assert run.stages[2].roles == run.stages[3].roles
    assert run.stages[2].method.phases == run.stages[3].method.phases
    structures = {jax.tree.structure(stage.method) for stage in run.stages[2:]}
    assert len(structures) == 1


BAD = {
    "misspelt key": (
        config_of(TEACHER, batch_sise=8),
        KeyError,
        "unknown key config.batch_sise.*did you mean 'batch_size'",
    ),
    "misspelt nested key": (
        config_of(TEACHER, optimizer__b3=0.9),
        KeyError,
        "unknown key config.optimizer.b3",
    ),
    "misspelt key of a stage": (
        config_of(TEACHER, stages__s00_teacher__step=3),
        KeyError,
        "stage s00_teacher: unknown key .*step.*did you mean 'steps'",
    ),
    "option that a method does not take": (
        config_of(stage("a", "diffusion", wrange=(0, 1), **RATES)),
        KeyError,
        "method 'diffusion' does not take 'wrange'; it takes: num_steps",
    ),
    "option that a method needs": (
        config_of(TEACHER, stage("a", "progressive", **RATES)),
        KeyError,
        "method 'progressive' needs a value for 'num_steps'",
    ),
    "option that a network does not take": (
        config_of(TEACHER, model__widht=8),
        KeyError,
        "network 'mlp' does not take 'widht'.*did you mean 'width'",
    ),
    "unknown method": (
        config_of(stage("a", "difusion", **RATES)),
        KeyError,
        "unknown method 'difusion'; known: boot, .*diffusion, .*; did you mean",
    ),
    "unknown network": (
        config_of(TEACHER, model__name="unett"),
        KeyError,
        "unknown network 'unett'; known: .*; did you mean 'unet'",
    ),
    "unknown dataset": (
        config_of(TEACHER, data__name="digit"),
        KeyError,
        "unknown dataset 'digit'; known: .*digits",
    ),
    "unknown schedule": (
        config_of(TEACHER, schedule__name="cos"),
        KeyError,
        "unknown schedule 'cos'",
    ),
    "head that does not fit the schedule": (
        config_of(TEACHER, parameterization="both", schedule__name="karras"),
        ValueError,
        "stage s00_teacher: parameterization is 'both' and schedule Karras.* needs 1 at all times",
    ),
    "unknown precision": (
        config_of(TEACHER, matmul_precision="float16"),
        ValueError,
        "config.matmul_precision is 'float16'; expected one of default, high, highest",
    ),
    "unknown parameterization": (
        config_of(TEACHER, parameterization="w"),
        KeyError,
        "unknown parameterization 'w'",
    ),
    "a frozen network in a type that is none": (
        config_of(TEACHER, frozen_dtype="float16"),
        ValueError,
        "frozen_dtype is 'float16'; expected one of float32, bfloat16",
    ),
    "log of every zeroth update": (config_of(TEACHER, log_every=0), ValueError, "log_every is 0"),
    "states kept at negative steps": (
        config_of(TEACHER, keep_every=-1),
        ValueError,
        "keep_every is -1; expected a whole number from 0",
    ),
    "report of no samples": (
        config_of(TEACHER, evaluate__num_samples=1),
        ValueError,
        "config.evaluate.num_samples is 1; expected a whole number from 2",
    ),
    "report at a negative w": (
        config_of(TEACHER, evaluate__w=(-1.0,)),
        ValueError,
        "at least one w, each from 0",
    ),
    "report of an ancestral variance that is none": (
        config_of(TEACHER, evaluate__ancestral=(2.0,)),
        ValueError,
        "variances from 0 to 1",
    ),
    "number as a word": (
        config_of({**TEACHER, "steps": "100"}),
        ValueError,
        "steps is '100'; expected a whole number",
    ),
    "sampling steps with a point": (
        config_of({**TEACHER, "method": {"name": "diffusion", "num_steps": 1e3}}),
        ValueError,
        "num_steps is 1000.0; expected a whole number",
    ),
    "running mean that grows": (
        config_of({**TEACHER, "ema_decay": 1.5}),
        ValueError,
        "config.stages.s00_teacher.ema_decay is 1.5; expected a number from 0 to below 1",
    ),
    "stage without a place in the order": (
        config_of(TEACHER, stages={"teacher": TEACHER}),
        ValueError,
        "stage teacher: expected a name such as s00_teacher",
    ),
    "no stages": (config_of(), ValueError, "config.stages is empty"),
    "no iterations": (config_of({**TEACHER, "steps": 0}), ValueError, "steps is 0"),
    "teacher of another number of steps": (
        config_of(TEACHER, GUIDED, halved(4), halved(1)),
        ValueError,
        "stage s03_half: a student of 1 ddim steps needs a teacher of 2",
    ),
    "reversed w range": (
        config_of(TEACHER, {**GUIDED, "method": {"name": "guided", "w_range": (4.0, 0.0)}}),
        ValueError,
        r"config.stages.s01_guided.method.w_range is \(4.0, 0.0\)",
    ),
    "negative w range": (
        config_of(TEACHER, {**GUIDED, "method": {"name": "guided", "w_range": (-1.0, 4.0)}}),
        ValueError,
        r"w_range is \(-1.0, 4.0\)",
    ),
    "encoder with a head that loses eps at t = 0": (
        config_of(TEACHER, ENCODER, parameterization="x"),
        ValueError,
        "parameterization is 'x'; method 'encoder' works only with v, eps, flow, edm",
    ),
    "decoder from an encoder": (
        config_of(TEACHER, ENCODER, stage("half", "progressive", num_steps=4, **RATES)),
        ValueError,
        "stage s02_half: a student of 4 ddim .* this teacher has 8 encode steps",
    ),
    "teacher that takes w": (config_of(TEACHER, GUIDED, GUIDED), ValueError, "would guide twice"),
    "weights that do not fit": (
        config_of(TEACHER, {**GUIDED, "new": ()}),
        ValueError,
        "teacher has no parameter conditioning/w_embed/Dense_0/bias",
    ),
    "method without its teacher": (config_of(GUIDED), ValueError, "'guided' needs a teacher"),
    "teacher that is no stage": (
        config_of(TEACHER, {**GUIDED, "teacher": "teecher"}),
        ValueError,
        "teacher 'teecher' is no earlier stage.*did you mean 'teacher'",
    ),
    "mesh of more devices than there are": (
        config_of(TEACHER, mesh__fsdp=64),
        ValueError,
        "does not fit",
    ),
    "image that patches do not fill": (
        config_of(TEACHER, model={"name": "dit", "patch": 3}),
        ValueError,
        "patch 3 does not divide the image of 8x8",
    ),
    "features of a network that has none": (
        config_of(TEACHER, SWD, model=MIXTURE, data={"name": "mixture"}),
        ValueError,
        "method 'swd' needs the features .* 'mixture' has no features; take one that",
    ),
    "augmentation for a network that is not told of it": (
        config_of(stage("teacher", "diffusion", augment=0.12, **RATES), model=SONG),
        ValueError,
        "augment is 0.12, and network 'song_unet' takes no labels of augmented images",
    ),
    "discriminator on a network without features": (
        config_of(
            TEACHER,
            stage("dmd2", "dmd2", gan_weight=0.1, **RATES),
            model=MIXTURE,
            data={"name": "mixture"},
        ),
        ValueError,
        "'mixture' has no features",
    ),
    "fake network kept of a method without one": (
        config_of({**TEACHER, "keep_fake": True}),
        ValueError,
        "keep_fake is True, and method 'diffusion' trains no fake network; leave keep_fake out",
    ),
    "fake network of a stage that does not keep it": (
        config_of(TEACHER, SID, {**SID, "teacher": "teacher", "init_fake": "sid"}),
        ValueError,
        "init_fake is 'sid', which does not keep its fake network; set keep_fake=True in that",
    ),
    "fake network of its own on adapters": (
        config_of(
            TEACHER,
            {**SID, "keep_fake": True},
            {**SID, "teacher": "teacher", "init_fake": "sid", "lora": 1},
        ),
        ValueError,
        "init_fake is 'sid' and lora 1: adapters of student and fake share the same frozen weights",
    ),
    "number where True or False is expected": (
        config_of(TEACHER, {**SID, "keep_fake": 1}),
        ValueError,
        "keep_fake is 1; expected True or False",
    ),
    "unknown discriminator": (
        config_of(TEACHER, stage("dmd2", "dmd2", gan_weight=1.0, discriminator="spatal", **RATES)),
        KeyError,
        "unknown discriminator 'spatal'; known: channels, pooled, spatial; did you mean 'spatial'",
    ),
    "several sizes for a network of one": (
        config_of(stage("teacher", "diffusion", resolutions=(4, 8), **RATES)),
        ValueError,
        "stage s00_teacher: .*8, 8, 1.*dit or unet",
    ),
    "resolutions beyond the data": (
        config_of(stage("teacher", "diffusion", resolutions=(8, 16), **RATES)),
        ValueError,
        r"resolutions are \(8, 16\), the data 8x8",
    ),
    "resolutions that shrink": (
        config_of(TEACHER, {**SWD, "method": {**SWD["method"], "resolutions": (8, 4)}}, model=DIT),
        ValueError,
        r"resolutions is \(8, 4\); expected .* that do not shrink",
    ),
    "times that rise": (
        config_of(TEACHER, {**SWD, "method": {"name": "swd", "times": (0.5, 1.0)}}),
        ValueError,
        r"times is \(0.5, 1.0\); expected times in \(0, 1\] that fall",
    ),
    "resolutions that the teacher has not seen": (
        config_of(TEACHER, {**SWD, "method": {**SWD["method"], "resolutions": (4, 8)}}, model=DIT),
        ValueError,
        "Train the teacher with",
    ),
    "kappa for a teacher without null label": (
        config_of(
            {**TEACHER, "method": {"name": "diffusion", "label_dropout": 0.0}},
            stage("sid", "sid_lsg", kappas=1.5, **RATES),
        ),
        ValueError,
        "stage s01_sid: .* trained with label_dropout=0",
    ),
    "kappa for data without labels": (
        config_of(
            TEACHER,
            stage("sid", "sid_lsg", kappas=1.5, **RATES),
            data={"name": "noise", "size": 8, "num_classes": 0},
        ),
        ValueError,
        "nothing to guide by; leave out w_range, w or kappa",
    ),
    "consistency model without its boundary": (
        config_of(TEACHER, stage("scm", "scm", **RATES), parameterization="x"),
        ValueError,
        "parameterization is 'x'; method 'scm' works only with v, eps, flow, edm",
    ),
    "consistency model that guides the data": (
        config_of(TEACHER, stage("ect", "consistency", source="data", w=1.0, **RATES)),
        ValueError,
        "source is 'data', w 1.0 and w_range None: only a teacher can be guided",
    ),
    "step of BOOT out of range": (
        config_of(TEACHER, stage("boot", "boot", delta=0.98, new=("target_embed",), **RATES)),
        ValueError,
        r"delta is 0.98; expected a step in \(0, 0.97\]",
    ),
    "masks for a network that takes none": (
        config_of(TEACHER, masks={"name": "random"}),
        ValueError,
        "stage s00_teacher: model is 'mlp', which takes no masked image; take sd_unet, or leave",
    ),
    "masks for a method without images": (
        config_of(
            TEACHER,
            stage("boot", "boot", new=("target_embed",), **RATES),
            masks={"name": "random"},
            model=SD_UNET,
        ),
        ValueError,
        "stage s01_boot: method 'boot' trains without images, and networks that inpaint take",
    ),
    "masks that are none": (
        config_of(TEACHER, masks={"name": "random", "whole": 1.5}),
        ValueError,
        "config.masks.whole is 1.5; expected a number from 0 to 1",
    ),
    "BOOT without its embedding": (
        config_of(TEACHER, stage("boot", "boot", **RATES)),
        ValueError,
        "no parameter conditioning/target_embed/Dense_0/bias.*name its module in the stage's `new`",
    ),
    "start that is no stage": (
        config_of(TEACHER, stage("sid", "sid_lsg", init="teecher", **RATES)),
        ValueError,
        "init 'teecher' is no earlier stage",
    ),
    "misspelt key of a stage's optimizer": (
        config_of(TEACHER, stage("sid", "sid_lsg", optimizer={"b3": 0.0}, **RATES)),
        KeyError,
        "unknown key config.stages.s01_sid.optimizer.b3",
    ),
    "adapters on nothing": (
        config_of({**TEACHER, "lora": 4}),
        ValueError,
        "lora is 4; expected the rank of adapters on the weights of a teacher",
    ),
    "exact network with another head": (
        config_of(
            TEACHER, data={"name": "mixture"}, model={"name": "mixture"}, parameterization="x"
        ),
        ValueError,
        "parameterization is 'x'; network 'mixture' predicts v only",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_message_before_anything_starts(kind, tmp_path):
    config, error, message = BAD[kind]
    with pytest.raises(error, match=message) as caught:
        plan.make(config, tmp_path / "run")
    assert len(caught.value.args) == 1
    assert not (tmp_path / "run").exists()


def test_a_derivative_of_layers_that_have_none_is_refused(tmp_path):
    stages = TEACHER, stage("scm", "scm", **RATES)
    mesh = {"data": 1, "fsdp": 2, "tensor": 1}
    full, dots = (
        config_of(*stages, model={**SONG, "remat": r}, mesh=mesh) for r in ("full", "dots")
    )
    with pytest.raises(ValueError, match="s01_scm: method 'scm' .* config.model.remat='dots'"):
        plan.make(full, tmp_path, devices=2)
    plan.make(dots, tmp_path, devices=2)


def test_a_teacher_directory_without_a_network_is_refused(tmp_path):
    config = config_of({**GUIDED, "teacher": str(tmp_path / "nothing")})
    with pytest.raises(FileNotFoundError, match="has no finished network"):
        plan.make(config, tmp_path)


def test_a_teacher_of_another_parameterization_or_schedule_is_refused(chain, tmp_path):
    # At smoke size the chain has the network of width 32 with v-prediction on a cosine schedule.
    guided = {**GUIDED, "teacher": str(chain / "s00_teacher")}
    for change, message in (
        ({"parameterization": "eps"}, "parameterization is eps, the teacher's v; "),
        ({"schedule__name": "ddpm"}, r"schedule is LinearBeta\(.*, the teacher's Cosine"),
    ):
        config = config_of(guided, model__width=32, **change)
        with pytest.raises(ValueError, match=message):
            plan.make(config, tmp_path)
    plan.make(config_of(guided, model__width=32, model__expand=2), tmp_path)


def described(schedule, head):
    content = {"model": {"name": "mlp", "width": 8, "blocks": 1}, "parameterization": head}
    return make_network({**content, "schedule": schedule}, image_data((8, 8, 1), 0))


def test_only_fine_tuning_changes_the_head_and_rescales_the_schedule():
    published = {"name": "ddpm", "beta_min": 0.00085, "beta_max": 0.012, "power": 2}
    teacher, student = described(published, "eps"), described({**published, "zero_snr": True}, "v")
    check_finetuned(student, teacher, "teacher")
    with pytest.raises(ValueError, match=r"the config's schedule is .*zero_snr=True\), the teach"):
        check_alike(student, teacher, "teacher")
    for other in (published, {**published, "power": 1, "zero_snr": True}, {"name": "cosine"}):
        with pytest.raises(ValueError, match="the config's schedule is "):
            check_finetuned(described(other, "v"), student, "init")


@pytest.mark.parametrize(
    ("head", "zero_snr", "words"),
    [("v", False, "with a signal of 0.068, where"), ("eps", True, "s02_half predict eps")],
)
def test_a_plan_warns_of_few_steps_from_noise_that_says_nothing(head, zero_snr, words, tmp_path):
    ends = {"beta_min": 0.00085, "beta_max": 0.012, "power": 2}

    def warnings(head, zero_snr, *stages):
        config = config_of(TEACHER, GUIDED, *stages, parameterization=head)
        config.schedule = {"name": "ddpm", **ends, "zero_snr": zero_snr}
        text = plan.show(plan.make(config, tmp_path))
        return [line for line in text.splitlines() if line.startswith("warning: ")]

    (line,) = warnings(head, zero_snr, halved(8))
    assert words in line
    assert not warnings("v", True, halved(8))
    assert not warnings(head, zero_snr, halved(16))


def test_every_method_describes_its_finished_network():
    for name, kind in METHODS.items():
        known = {"num_steps": 4} if "num_steps" in kind.__dataclass_fields__ else {}
        method = kind(**{"swd": {"times": (1.0, 0.5)}, "boot": {}}.get(name, known))
        trained = method.trained(Cosine())
        assert trained.num_steps == len(trained.sampler.times) == method.num_steps
        assert trained.guidance.w_range == method.w_range
        assert ("w" in trained.inputs) == (method.w_range is not None)


def test_two_plans_of_one_config_share_their_compiled_updates(tmp_path):
    runs = [plan.make(config_of(TEACHER, GUIDED), tmp_path / name) for name in ("one", "two")]
    for stages in zip(*(run.stages for run in runs), strict=True):
        updates = [
            all_updates(stage.method.phases, stage.roles, stage.tx, run.layout, 1)
            for stage, run in zip(stages, runs, strict=True)
        ]
        assert all(a is b for a, b in zip(*map(jax.tree.leaves, updates), strict=True))


def test_a_network_is_the_same_whatever_the_order_of_its_options():
    model = {"name": "mlp", "width": 8, "blocks": 1}
    described = {"model": model, "schedule": {"name": "cosine"}, "parameterization": "v"}
    backwards = {**described, "model": dict(reversed(model.items()))}
    data = image_data((4, 4, 1), 3)
    assert make_network(described, data) is make_network(backwards, data)
