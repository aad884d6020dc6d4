"""Parts of configs that start from published networks of EDM, ADM and google-research.

A config names the directory of the imported network as config.teacher, and a run takes the network
from its manifest. The sizes here are for plans without that directory; they are the published ones.
"""

from typing import Any

from ml_collections import ConfigDict

from distill_jax.config.chains import halvings, pipeline, stage
from distill_jax.config.presets import (
    cifar10,
    imagenet64,
    lsun128,
    paper_unet,
    smoke_images,
)

_ADM = {"name": "adm_unet", "channels": 192, "multipliers": (1, 2, 3, 4), "blocks": 3}
_ADM["attention"] = (32, 16, 8)
_GOOGLE = {"logsnr_input": "inv_cos", "resblock_resample": True, "dropout": 0.0}
# Network, schedule, parameterization, and options of the data, by directory of the import.
IMPORTED: dict[str, tuple[dict[str, Any], str, str, dict[str, Any]]] = {
    "edm_cifar10": (
        dict(name="song_unet", channels=128, multipliers=(2, 2, 2), blocks=4, dropout=0.13),
        "karras",
        "edm",
        {},
    ),
    "edm_imagenet64": ({**_ADM, "dropout": 0.1}, "karras", "edm", {"resize": "adm"}),
    "adm_imagenet64": (
        {**_ADM, "group_dim": 1, "noise_input": "index"},
        "iddpm",
        "eps",
        {"resize": "adm"},
    ),
    "google_cifar10": (paper_unet("cifar10", **_GOOGLE), "cosine", "x", {"labelled": False}),
    "google_lsun128": (paper_unet("lsun128", **_GOOGLE), "cosine", "both", {}),
}
_DATA = {"cifar10": cifar10, "imagenet64": imagenet64, "lsun128": lsun128}
RATES: dict[str, Any] = dict(learning_rate=1e-4, warmup=1000, decay_to=1.0, ema_decay=0.9999)
# A quarter of the teacher's updates at its learning rate, as docs/ablations.md found on digits. The
# teachers' own: EDM's script, ADM's table, and configs/cifar10_progressive.py, from memory.
FINETUNE: dict[str, dict[str, Any]] = {
    "edm_cifar10": dict(
        steps=98_000,
        learning_rate=1e-3,
        batch_size=512,
        levels=("lognormal", 0.002, 80.0),
        weighting="edm",
    ),
    "adm_imagenet64": dict(steps=135_000, learning_rate=3e-4),
    "google_cifar10": dict(steps=200_000, learning_rate=2e-4),
}


def from_published(name: str, **model: Any) -> ConfigDict:
    """Returns `base` for a chain from the imported network in teachers/NAME, and for its data.

    Args:
      name: a key of IMPORTED.
      **model: further options of the network, such as dtype.
    """
    network, schedule, parameterization, data = IMPORTED[name]
    config = _DATA[name.partition("_")[2]]()
    config.model = {**network, **model}
    config.schedule, config.parameterization = {"name": schedule}, parameterization
    config.data.update(data)
    config.teacher = f"teachers/{name}"
    config.evaluate.w = (0.0,)
    return config


def finetune_stage(name: str, **options: Any) -> dict[str, Any]:
    """Returns the stage `finetune` of an imported network, by the recipe of docs/teachers.md.

    Args:
      name: a key of FINETUNE; the network is in teachers/NAME.
      **options: options of the stage and of the method.
    """
    rates = dict(warmup=5000, ema_decay=0.9999, ema_ramp=0.05)
    teacher, own = f"teachers/{name}", FINETUNE[name]
    return stage("finetune", "diffusion", teacher=teacher, **(rates | own | options))


def guided_stages(name: str, start: int, new: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Returns the stages finetune, guided in 2 `start` steps, and `start`, ..., 1 steps.

    The first one trains the imported network with a fifth of the labels dropped, because none of
    those in IMPORTED has seen the null label. Updates and learning rates are ours, not run.

    Args:
      name: a key of FINETUNE; the network is in teachers/NAME.
      start: steps of the first halved student.
      new: modules of labels that the imported network lacks.
    """
    w_range, updates = (0.0, 4.0), {"default": 50_000, 2: 100_000, 1: 100_000}
    guide: dict[str, Any] = dict(steps=50_000, num_steps=2 * start, w_range=w_range)
    return [
        finetune_stage(name, num_steps=2 * start, label_dropout=0.2, new=new),
        stage("guided", "guided", new=("w_embed",), **guide, **RATES),
        *halvings(start, steps=updates, learning_rate=5e-5, w_range=w_range),
    ]


def sized_import(config: ConfigDict, size: str, **teacher: Any) -> ConfigDict:
    """Returns a config of an imported network at a size.

    "plan" has the published sizes and "smoke" a small network on noise; both train a teacher in
    place of the imported one, unless --config.teacher names it. Any other size is the config.

    Args:
      config: the config at full size.
      size: the size.
      **teacher: options of the new first stage.
    """
    if size not in ("plan", "smoke"):
        return config
    config = config.copy_and_resolve_references()
    entries = [config.stages[name].to_dict() for name in sorted(config.stages)]
    for entry in entries:
        entry["teacher"] = "teacher" if entry["teacher"] == config.teacher else entry["teacher"]
    # The batch of the next stage, so that a plan says what the chain itself takes.
    rates = dict(steps=1, learning_rate=1e-4, batch_size=entries[0]["batch_size"])
    first = stage("teacher", "diffusion", **rates, **teacher)
    config.stages, config.teacher = pipeline(first, *entries), ""
    if size == "plan":
        return config
    data, side = config.data, config.data.size
    classes = data.num_labels if data.num_labels > 1 and data.get("labelled", True) else 0
    return smoke_images(config, side, config.model.name, num_classes=classes)
