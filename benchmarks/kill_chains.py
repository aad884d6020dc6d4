"""Small chains for kill.py and faults.py: images from disk, two trained roles, adapters.

python benchmarks/kill.py --config=benchmarks/kill_chains.py:images
"""

import pathlib
import tempfile

import numpy as np
import PIL.Image

from distill_jax.config import base, check_size, pipeline, stage

SIDE, IMAGES = 8, 40
RATES = {"steps": 9, "learning_rate": 1e-3}


def get_config(size="tiny"):
    """Returns a chain of points, of images in class folders, of SiD, or of adapters."""
    check_size(size, "tiny", "images", "roles", "adapted")
    config = base()
    config.data.name = "mixture"
    config.model.update(name="mlp", width=8, blocks=1)
    config.batch_size, config.save_every, config.log_every = 8, 2, 1
    config.evaluate.update(w=(0.0,), num_samples=8)
    teacher = stage("teacher", "diffusion", num_steps=2, **RATES)
    half = stage("n0001", "progressive", num_steps=1, **RATES)
    if size == "images":
        config.data = {"name": "folder", "path": str(pictures()), "size": SIDE, "labelled": True}
    if size == "roles":
        half = stage("sid", "sid_lsg", teacher="teacher", init="teacher", **RATES)
    if size == "adapted":
        guided = {"w_range": (0.0, 4.0), "lora": 2, **RATES}
        half = stage("guided", "guided", new=("w_embed",), clip_target=False, **guided)
    config.stages = pipeline(teacher, half)
    return config


def pictures():
    """Writes the same images as ever into two class folders, and returns the folder."""
    folder = pathlib.Path(tempfile.gettempdir()) / "kill_pictures"
    for number in range(IMAGES):
        path = folder / f"class{number % 2}" / f"{number}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            PIL.Image.fromarray(drawn).save(path.with_suffix(".new"), format="PNG")
            path.with_suffix(".new").rename(path)
    return folder
