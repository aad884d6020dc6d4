"""Small directories in the place of those that the configs of emoji need."""

import json

import numpy as np
from PIL import Image

from tests.models import test_taesd
from tests.models.pretrained import BERT
from tests.models.pretrained.directories import RECORDED, write

DESIGNS = ("google", "twitter")
LENGTH = 8  # Tokens of a prompt, of which the small BERT takes 12.


def write_parts(folder):
    """Writes pictures with names, a tiny autoencoder and BERT; returns the changes of the config.

    Every name has two pictures.
    """
    places = {part: folder / part for part in ("data", "codec", "conditioner")}
    (places["data"] / "images").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for i in range(40):
        for design in DESIGNS:
            name = f"images/{design}_{i}.png"
            x = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(x).resize((64, 64)).save(places["data"] / name)
            rows.append({"file_name": name, "text": f"the {i}", "design": design})
    lines = "\n".join(json.dumps(row) for row in rows)
    (places["data"] / "metadata.jsonl").write_text(lines)
    test_taesd.write(places["codec"], **{**test_taesd.LAYERS, "width": 8})
    places["conditioner"].mkdir()
    (places["conditioner"] / "tokenizer.json").write_text(str(RECORDED["pieces_json"]))
    write(places["conditioner"], BERT, "bert_names")
    paths = {f"{part}.path": str(place) for part, place in places.items()}
    return {**paths, "conditioner.length": LENGTH}
