"""Your own images, from a folder: guided distillation to 1 step, or halvings without classes.

Meng et al. (2023, arXiv:2210.03142) and Salimans & Ho (2022, arXiv:2202.00512); rates are ours. The
text after FILE.py: is the folder; network, size of the images and updates follow from what is
there, and the plan says them. Layouts are in docs/data.md: class folders, train/val, dataset.json.

    python -m distill_jax.main --config=configs/folder.py:DIR --plan      # 32 or 64 pixels
    python -m distill_jax.main --config=configs/folder.py:DIR,128         # another side
    python -m distill_jax.main --config=configs/folder.py:DIR,small       # 15 minutes on a CPU
    python -m distill_jax.main --config=configs/folder.py:smoke           # fake data, CPU

Without a folder it is the chain for 10,000 images of 10 classes: set config.data.path. Only "small"
was run to its end: docs/tutorial_folder.md has what came out.
"""

from distill_jax.config import OwnImages, folder_chain, own_images, smoke_images


def get_config(given="full"):
    """Returns the chain for "DIR", "DIR,side", "DIR,small", "full" or "smoke"."""
    path, *words = given.split(",")
    if path not in ("full", "smoke"):
        return folder_chain(own_images(path), words)
    images = OwnImages("", 10_000, 64, True)
    if path == "full":
        return folder_chain(images, words)
    return smoke_images(folder_chain(images, words, start=2), 32, "unet", num_classes=10)
