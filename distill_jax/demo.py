"""Writes a static page that runs students in the browser, beside their teachers.

python -m distill_jax.demo digits --out=page
python -m distill_jax.demo runs/shapes_boot runs/shapes_dmd2 --out=page --pictures=9
python -m http.server --directory page
"""

import itertools
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath

from distill_jax.data import scenes
from distill_jax.diffusion.spec import is_point
from distill_jax.diffusion.trained import Renoise
from distill_jax.evaluation import compare
from distill_jax.runtime import logging
from distill_jax.runtime.app import needed, run_app
from distill_jax.runtime.files import PARTIAL, absolute
from distill_jax.sampling import loading
from distill_jax.sampling.program import ANY, names_of_tokens, takes_any_steps
from distill_jax.sampling.prompts import Text
from distill_jax.sampling.student import Student
from distill_jax.teachers import browser, onnx

PAGE = pathlib.Path(browser.__file__).parent / "web"
MAX_PICTURES = 64
STRENGTHS = (0.0, 4.0)  # Of the slider, if no student takes w.


def define_flags() -> None:
    """Defines the flags of the command; not at import, because commands share flag names."""
    loading.define_flags()
    flags.DEFINE_string("out", None, "New folder of the page.")
    flags.DEFINE_bool("teacher", True, "Also show the teacher of the first student.")
    flags.DEFINE_integer("pictures", 4, "Pictures of each network.", 1, MAX_PICTURES)
    flags.DEFINE_multi_string(
        "prompt", None, "A prompt to choose; networks of captioned shapes need none."
    )
    flags.DEFINE_string(
        "runtime", None, "Folder with the files of onnxruntime-web, which npm downloads otherwise."
    )
    flags.DEFINE_string("title", "The same noise through each network", "Title of the page.")


def main(*students: str) -> None:
    """Writes the page of the students into --out."""
    values, out = flags.FLAGS, absolute(needed("out", ": the folder of the page"))
    if out.exists():
        raise ValueError(f"--out={out} exists; choose the name of a new folder")
    networks = _networks(students, values)
    facts = _facts(networks, values)
    partial = out.parent / f".{out.name}{PARTIAL}"
    if partial.exists():
        partial.rmtree()
    try:
        browser.copy_runtime(partial / "runtime", values.runtime)
        described = [
            _exported(network, partial / f"{i}.onnx", facts) for i, network in enumerate(networks)
        ]
        (partial / "demo.json").write_text(json.dumps({**facts, "networks": described}))
        for file in PAGE.iterdir():
            shutil.copy(file, partial / file.name)
        partial.rename(out)
    finally:
        if partial.exists():
            partial.rmtree()
    count = logging.counted(len(networks), "network")
    logging.say(f"wrote a page of {count}; next: python -m http.server --directory {out}")


def _networks(places: Sequence[str], values: Any) -> list[Student]:
    """Returns the students, after the teacher of the first.

    Raises:
      ValueError: for networks of points, and for those that do not take the same.
    """
    found = [loading.load(place, None, loading.parts(values), values.allow) for place in places]
    for place, network in zip(places, found, strict=True):
        if is_point(network.image_shape):
            raise ValueError(f"{place} draws points, and the page shows images")
        if _takes(network) != _takes(found[0]):
            raise ValueError(
                f"{place} takes {_takes(network)}, and {places[0]} takes {_takes(found[0])}; "
                "write a page of each"
            )
    first = found[0]
    teacher = compare.root(first) if values.teacher and first.manifest.distilled else None
    return found if teacher is None else [loading.read(teacher), *found]


def _takes(network: Student) -> str:
    """Returns what a network draws from, in words."""
    if network.text is not None:
        return "prompts"
    return logging.counted(network.num_classes, "label") if network.num_classes else "no labels"


def _facts(networks: Sequence[Student], values: Any) -> dict[str, Any]:
    """Returns what the page shows around the networks."""
    free = [network.trained.num_steps for network in networks if takes_any_steps(network)]
    most = max(free, default=0)
    steps = sorted({*(2**i for i in range(most.bit_length())), most}) if free else None
    return {
        "title": values.title,
        "pictures": values.pictures,
        "labels": networks[0].num_classes,
        "menus": _menus(networks, values.prompt),
        "steps": steps,
        "w": _strengths(networks),
    }


def _strengths(networks: Sequence[Student]) -> tuple[float, float, float] | None:
    """Returns the range of w and its first value; None if no network takes w."""
    ranges = [each for network in networks if (each := network.trained.guidance.w_range)]
    if not ranges and not any(network.can_be_guided for network in networks):
        return None
    low, high = ranges[0] if ranges else STRENGTHS
    own = networks[-1].trained.guidance.fixed_w or 2.0
    return low, max(high, own), max(low, min(own, high))


def _menus(networks: Sequence[Student], prompts: Sequence[str] | None) -> list[list[str]] | None:
    """Returns the menus whose texts, joined, are a prompt; None for networks without captions.

    Raises:
      ValueError: for prompts that are not taken, and for none.
    """
    if not networks[0].takes_prompts:
        if prompts:
            raise ValueError(f"--prompt is given, and the page has {_takes(networks[0])}")
        return None
    if prompts:
        return [list(dict.fromkeys(prompts))]
    if any((network.manifest.data or {}).get("name") != "shapes" for network in networks):
        raise ValueError("the page has networks of prompts: expected --prompt='a text', or several")
    objects = [scene.caption for scene in scenes.all_scenes() if not scene.relation]
    return [objects, ["", *scenes.RELATIONS], objects]


def _exported(network: Student, file: epath.Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes a network's program, and returns what the page says and needs of it."""
    free = takes_any_steps(network)
    onnx.write(network, file, ANY if free else None, facts["pictures"])
    described = {
        **json.loads(file.with_suffix(".json").read_text()),
        "name": _name(network, free),
        # The number of the sampler's step of the first noise that it adds, see program_of.
        "later": int(isinstance(network.trained.sampler, Renoise)),
    }
    if network.text is not None:
        described["tokens"] = _tokens(network.text, facts["menus"])
    return described


def _name(network: Student, free: bool) -> str:
    """Returns what stands above the pictures of a network."""
    guidance = network.trained.guidance
    who = "student" if network.manifest.distilled else "teacher"
    steps = "" if free else f" in {logging.counted(network.trained.num_steps, 'step')}"
    fixed = f", w = {guidance.fixed_w:g}" if guidance.fixed_w else ""
    return f"{who}{steps}{fixed} ({network.manifest.stage})"


def _tokens(text: Text, menus: Sequence[Sequence[str]]) -> dict[str, dict[str, list[int]]]:
    """Returns the token numbers of every prompt of the menus, by prompt and input."""
    chosen = (itertools.takewhile(bool, each) for each in itertools.product(*menus))
    prompts = list(dict.fromkeys(map(" ".join, chosen)))
    made = [tokenizer(prompts)[0].tolist() for tokenizer in text.tokenizers]
    names = names_of_tokens(text)
    return {
        prompt: dict(zip(names, ids, strict=True))
        for prompt, ids in zip(prompts, zip(*made, strict=True), strict=True)
    }


if __name__ == "__main__":
    define_flags()
    run_app(main, "STUDENT...")
