"""Small files in the formats of EDM, ADM and google-research, and their imports as teachers."""

import json
from typing import Any, NamedTuple

import jax
import numpy as np

from distill_jax.diffusion.spec import image_data
from distill_jax.models.build import abstract_params, make_network
from distill_jax.runtime.config_file import load_file
from distill_jax.teachers import adm, edm, importing
from tests.teachers.foreign import fill
from tests.teachers.pickles import FLOAT, Stored, archive, dump, network, tensor
from tests.teachers.test_adm import listing
from tests.teachers.toys import save
from tests.toys import ROOT

EDM = {"img_channels": 3, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
# Options of EDM's two families, by directory of the import; heads of the second have 64 channels.
FAMILIES = {
    "edm_cifar10": {"model_type": "SongUNet", "model_channels": 8},
    "edm_imagenet64": {"model_type": "DhariwalUNet", "model_channels": 64},
}
GOOGLE = {"google_cifar10": "cifar10_google_pd", "google_lsun128": "lsun_google_pd"}


DATA = {"cifar10": (32, 10), "imagenet64": (64, 1000), "lsun128": (128, 0)}  # Sides, classes.


class File(NamedTuple):
    """A file in a published format, and what its import needs besides."""

    kind: str
    path: Any
    given: dict[str, Any] = {}
    preset: str = ""
    side: int = 8

    def convert(self, out):
        """Imports the network into a directory, and returns it as text."""
        config = described(self.preset, self.side).to_dict() if self.preset else None
        importing.convert(self.kind, self.path, out, config, self.given)
        return str(out)

    def words(self, out):
        """Returns the words of the command that does the same."""
        words = [self.kind, self.path, f"--out={out}"]
        words += [f"--set={key}={json.dumps(value)}" for key, value in self.given.items()]
        if self.preset:
            file = f"--config=configs/{self.preset}.py:smoke"
            words += [file, f"--config.data.size={self.side}"]
        return words


def described(preset, side):
    """Returns the config that describes a small network of google-research."""
    config = load_file(ROOT / "configs" / f"{preset}.py").get_config("smoke")
    config.data.size = side
    return config


def write(source, folder, side=8, classes=5):
    """Writes a small network in the format of a directory in distill_jax.config.IMPORTED."""
    folder.mkdir(parents=True, exist_ok=True)
    if source in FAMILIES:
        options = {**EDM, **FAMILIES[source], "img_resolution": side, "label_dim": classes}
        state = {leaf.name: fill(leaf.name, leaf.shape) for _, leaf in edm.leaves(options)}
        described_by = network(state, "EDMPrecond", _init_args=(), _init_kwargs=options)
        (folder / "edm.pkl").write_bytes(dump({"ema": described_by}))
        return File("edm", folder / "edm.pkl")
    if source in GOOGLE:
        config = described(GOOGLE[source], side)
        spec = make_network(config.to_dict(), image_data((side, side, 3), 0))
        shapes = jax.tree_util.tree_leaves_with_path(abstract_params(spec, ()))
        leaves = [fill(jax.tree_util.keystr(path), leaf.shape) for path, leaf in shapes]
        params = jax.tree.unflatten(jax.tree.structure(abstract_params(spec, ())), leaves)
        path = save(folder / "state", params)
        given = {"num_steps": 4}  # Reports draw the teacher in its own steps.
        return File("google_research", path, given, GOOGLE[source], side)
    items, entries = {}, {"byteorder": b"little"}
    found, rest = adm.Found(3, 8, (1,), 1, (), classes), adm.Released(side, 1, True, "iddpm")
    for i, (name, shape) in enumerate(listing(found, rest).items()):
        items[name] = tensor(Stored("storage", FLOAT, str(i), "cpu", int(np.prod(shape))), shape)
        entries[f"data/{i}"] = fill(name, shape).tobytes()
    given = {"side": side, "heads": 1, "split_first": True, "schedule": "iddpm"}
    return File("adm", archive(folder, {"data.pkl": dump(items), **entries}), given)


def write_parts(folder, source):
    """Imports a small teacher for the data of a config; returns the changes of the config."""
    file = write(source, folder, *DATA[source.partition("_")[2]])
    return {"teacher": file.convert(folder / "teacher")}
