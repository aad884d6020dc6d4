"""Tests of presets against the configs that the papers' authors released, value by value.

The values were read from the files named here: google-research/google-research, folder
diffusion_distillation/diffusion_distillation (configs at 30adf0e, ff09859; dpm.py at 1d4d2f1);
mingyuanzhou/SiD at 01fbb13; mingyuanzhou/SiD-LSG at 709fc22. DIFFERS lists deliberate differences,
each with words that are in the preset's docstring or in docs/reference_differences.md.
"""

import inspect

import pytest

from distill_jax.data import DATASETS
from distill_jax.methods import METHODS
from distill_jax.models import NETWORKS
from distill_jax.models.build import as_tuples
from distill_jax.runtime.registry import build
from tests.test_configs import load_config
from tests.toys import ROOT

# Values that all four pairs of configs of Salimans & Ho share: *_base.py, *_distill.py.
BASE = {
    "model.name": "unet",
    "model.blocks": 3,
    "model.logsnr_input": "inv_cos",
    "model.resblock_resample": True,
    "data.flip": True,
    "schedule": {"name": "cosine"},  # The default ends are the released ones, -20 and 20.
    "optimizer": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip_norm": 1.0},
    "teacher.weighting": "snr_trunc",
    "teacher.all_times": True,  # train_num_steps=0
    "teacher.num_steps": 1024,
    "bounded": True,  # eval_clip_denoised
    "teacher.label_dropout": 0.0,
    "teacher.warmup": 1000,
    "teacher.decay_to": 1.0,
    "teacher.ema_decay": 0.9999,
    "rounds.weighting": "snr_trunc",
    "rounds.clip_target": False,  # dpm.py, training_losses: clip_x=False in both teacher calls
    "rounds.factor": 2,
    "rounds.steps": 50_000,
    "rounds.warmup": 0,
    "rounds.decay_to": 0.0,  # learning_rate_anneal_type="linear"
    "rounds.weight_decay": 0.0,
    "rounds.ema_decay": 0.0,
    "last round.num_steps": 1,
}
LARGE = {
    "parameterization": "both",
    "batch_size": 2048,
    "model.attention": (8, 16, 32),
    "model.heads": None,
    "model.head_dim": 64,
    "model.embedding": 768,
    "model.dropout": 0.1,
    "teacher.learning_rate": 3e-4,
    "teacher.weight_decay": 0.0,
    "rounds.learning_rate": 1e-4,
    "first round.num_steps": 512,  # Of a teacher of start_num_steps=1024.
}
LSUN = {
    **BASE,
    **LARGE,
    "data.size": 128,
    "data.resize": "triangle",  # datasets.py: tf.image.resize(antialias=True)
    "data.num_labels": 1,
    "model.channels": 64,
    "model.multipliers": (1, 2, 4, 6, 8),
}
SID_ADAM = {"b1": 0.0, "b2": 0.999, "eps": 1e-8, "clip_norm": 0.0}
LSG = {  # run_sid.sh and sid_train.py's defaults of SiD-LSG; steps are in names of checkpoints.
    "batch_size": 512,
    "parameterization": "eps",
    "stage optimizer": SID_ADAM,
    "last.alpha": 1.0,
    "last.kappas": 1.5,
    "last.sigma_init": 2.5,  # Step 625 of 1000.
    "last.levels": ("scaled_linear", 0.138, 12.97),  # --tmin 20 --tmax 980
    "last.fake_levels": ("scaled_linear", 0.138, 12.97),
    "last.weighting": "snr",
    "last.fake_updates": 1,
    "last.null_dropout": 0.1,
    "last.loss_scale": 1.0,
    "last.learning_rate": 1e-6,
    "last.decay_to": 1.0,
    "last.warmup": 0,
    "last.weight_decay": 0.0,
    "last.ema_decay": pytest.approx(0.5 ** (512 / 50_000), abs=5e-6),  # --ema 0.05
}
SID = {  # run_sid.sh cifar10-cond, sid_train.py's defaults, sid_training_loop.py
    "batch_size": 256,
    "data.labelled": True,
    "matmul_precision": "highest",  # allow_tf32 = False
    "model.dropout": 0.13,
    "stage optimizer": SID_ADAM,
    "last.learning_rate": 1e-5,
    "last.decay_to": 1.0,
    "last.warmup": 0,
    "last.weight_decay": 0.0,
    "last.steps": 800_000_000 // 256,  # --duration 800
    "last.ema_decay": pytest.approx(0.5 ** (256 / 500_000), abs=5e-7),  # --ema 0.5
    "last.ema_ramp": 0.05,
    "last.alpha": 1.2,
    "last.kappas": 1.0,
    "last.sigma_init": 2.5,
    # --tmax 800 of 1000 on EDM's grid; P_mean -1.2 and P_std 1.2 are those of "lognormal".
    "last.levels": (
        "karras",
        0.002,
        pytest.approx((0.2 * 0.002 ** (1 / 7) + 0.8 * 80 ** (1 / 7)) ** 7, rel=1e-3),
    ),
    "last.weighting": "edm",
    "last.fake_updates": 1,
    "last.loss_scale": 100.0,  # --lsg
    "model.name": "song_unet",  # --arch ddpmpp
    "parameterization": "edm",
    "schedule": {"name": "karras"},
}
RELEASED = {
    "cifar10_progressive": {  # cifar_base.py, cifar_distill.py
        **BASE,
        "parameterization": "x",
        "batch_size": 128,
        "data.dataset": "cifar10",
        "data.labelled": False,
        "model.channels": 256,
        "model.embedding": 1024,
        "model.multipliers": (1, 1, 1),
        "model.attention": (8, 16),
        "model.heads": 1,
        "model.dropout": 0.2,
        "teacher.learning_rate": 2e-4,
        "teacher.weight_decay": 0.001,
        "rounds.learning_rate": 5e-5,
        "first round.num_steps": 4096,  # Of a teacher of start_num_steps=8192.
    },
    "imagenet64_progressive": {  # imagenet64_base.py, imagenet64_distill.py
        **BASE,
        **LARGE,
        "data.dataset": "imagenet2012",
        "data.size": 64,
        "data.splits": ("train", "validation"),
        "data.labelled": True,
        "data.resize": "area",  # datasets.py
        "model.channels": 192,
        "model.multipliers": (1, 2, 3, 4),
    },
    "lsun128_progressive": {**LSUN, "data.dataset": "lsun/bedroom"},  # bedroom128_*.py
    "lsun128_progressive:church": {**LSUN, "data.dataset": "lsun/church_outdoor"},  # church128_*
    "cifar10_sid": SID,
    "cifar10_edm_sid": SID,
    "imagenet64_edm_sid": {  # run_sid.sh imagenet64-cond
        **SID,
        "batch_size": 8192,
        "matmul_precision": "default",  # --fp16 1
        "model.name": "adm_unet",  # --arch adm
        "model.dropout": 0.1,
        "stage optimizer": {**SID_ADAM, "eps": 1e-6},
        "last.learning_rate": 4e-6,
        "last.steps": 1_000_000_000 // 8192,
        "last.ema_decay": pytest.approx(0.5 ** (8192 / 2_000_000), abs=5e-7),  # --ema 2
    },
    "cifar10_sid_lsg": {  # sid_train.py's defaults, README: kappa 1.5 four times
        "matmul_precision": "highest",  # allow_tf32 = False
        "stage optimizer": SID_ADAM,
        "last.alpha": 1.0,
        "last.kappas": 1.5,
        "last.levels": ("scaled_linear", 0.138, 12.97),  # --tmin 20 --tmax 980
        "last.fake_levels": ("scaled_linear", 0.138, 12.97),
        "last.weighting": "snr",
        "last.fake_updates": 1,
        "last.loss_scale": 1.0,
    },
    "sd15_sid_lsg": {**LSG, "last.steps": round(8_806_000 / 512)},
    "sd21_sid_lsg": {**LSG, "last.steps": round(9_728_000 / 512)},
    "cifar10_swd": {  # main.py's defaults, train_sd35_medium.sh
        "batch_size": 64,
        "stage optimizer": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip_norm": 10.0},
        "last.learning_rate": 5e-6,
        "last.decay_to": 1.0,
        "last.warmup": 0,
        "last.weight_decay": 0.01,
        "last.steps": 3000,
        "last.ema_decay": 0.0,
        "last.w": 6.0,  # --cfg_teacher 7.0
        "last.dmd_weight": 1.0,
        "last.gan_weight": 5e-3,
        "last.discriminator_weight": 1e-2,
        "last.mmd_weight": 1.0,
        "last.mmd": "pseudo_huber",  # --mmd_kernel linear of mmd_loss_, --huber_c 0.001
        "last.mmd_features": "fake",
        "last.dmd_levels": ("shifted_flow", 0.009, 3.77),  # --dmd_noise_start_idx 12
        "last.mmd_levels": ("shifted_flow", 0.009, 1.51),  # --mmd_noise_start_idx 18
        "last.fake_levels": ("shifted_flow", 0.009, 1000.0),
        "last.backward": False,
        "last.fake_updates": 5,
    },
}
# Values of presets that are not the released ones, and the words that say so in the docstring of
# the config, beside them, or in docs/reference_differences.md.
DIFFERS = {
    ("cifar10_progressive", "rounds.steps"): (100_000, "twice as many updates"),
    ("imagenet64_progressive", "rounds.steps"): (100_000, "twice as many updates"),
    ("lsun128_progressive", "rounds.steps"): (100_000, "twice as many updates"),
    ("lsun128_progressive:church", "rounds.steps"): (100_000, "twice as many updates"),
    ("cifar10_sid", "model.dropout"): (0.2, "dropout is 0.2 and not 0.13"),
    ("cifar10_sid", "last.steps"): (390_625, "100 million images, not 800 million"),
    ("cifar10_sid", "model.name"): ("unet", "that of cifar10_guided, not EDM's"),
    ("cifar10_sid", "parameterization"): ("v", "that of cifar10_guided, not EDM's"),
    ("cifar10_swd", "batch_size"): (256, "rate, batch and updates are ours"),
    ("cifar10_swd", "last.learning_rate"): (1e-5, "rate, batch and updates are ours"),
    ("cifar10_swd", "last.steps"): (30_000, "rate, batch and updates are ours"),
    ("cifar10_swd", "last.ema_decay"): (0.999, "EMA of the student (SwD)"),
    ("cifar10_swd", "last.w"): (0.0, "guidance in DMD (SwD)"),
    ("cifar10_sid", "schedule"): ({"name": "cosine"}, "that of cifar10_guided, not EDM's"),
}


def options(table, spec, *given):
    """Returns a spec with the default options of the object that it names."""
    known = inspect.signature(table[spec["name"]]).parameters
    defaults = {name: p.default for name, p in known.items() if p.default is not p.empty}
    return {**defaults, **spec}


def values(config, key):
    """Returns a preset's values under a key of the tables: one value, or one per round."""
    where, _, name = key.partition(".")
    if key == "stage optimizer":
        last = config.stages[max(config.stages)]
        return [{**config.optimizer, **last.optimizer}]
    if key == "bounded":
        return [build(DATASETS, "dataset", config.data.to_dict()).spec.bounded]
    if where in ("model", "data") and name:
        table = {"model": NETWORKS, "data": DATASETS}[where]
        return [options(table, config[where].to_dict())[name]]
    stages = [config.stages[stage] for stage in sorted(config.stages)]
    picked = {"teacher": stages[:1], "rounds": stages[1:], "first round": stages[1:2]}
    picked = {**picked, "last round": stages[-1:], "last": stages[-1:]}.get(where)
    if picked is None:
        value = config[key]
        return [value.to_dict() if hasattr(value, "to_dict") else value]
    methods = [build(METHODS, "method", as_tuples(stage.method.to_dict())) for stage in picked]
    return [
        stage[name] if name in stage else getattr(method, name)
        for stage, method in zip(picked, methods, strict=True)
    ]


@pytest.mark.parametrize("preset", RELEASED)
def test_a_preset_has_the_released_values_but_for_those_that_it_names(preset):
    name, _, size = preset.partition(":")
    module, config = load_config(name, size or "full")
    words = " ".join((ROOT / "docs" / "reference_differences.md").read_text().split())
    words += " ".join(module.__doc__.split())
    for key, released in RELEASED[preset].items():
        found, other = values(config, key), DIFFERS.get((preset, key))
        if other is None:
            assert all(value == released for value in found), (key, found)
            continue
        mine, why = other
        assert mine in found, (key, found)
        assert all(value in (mine, released) for value in found), (key, found)
        assert why in words, f"nothing says why {key} is {mine}, not {released}"


def test_every_difference_is_one_from_a_released_value():
    for preset, key in DIFFERS:
        assert DIFFERS[preset, key][0] != RELEASED[preset][key]
