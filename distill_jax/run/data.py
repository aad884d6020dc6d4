"""The data of a run: what the plan says of them, and what is checked before the training."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from distill_jax.data import Dataset
from distill_jax.data.base import Summary, check, has_images, summarise
from distill_jax.data.decoding import ADVICE
from distill_jax.data.encoded import Encoded
from distill_jax.data.prompts import captions_of
from distill_jax.runtime import distributed, logging
from distill_jax.runtime.files import absolute, read_json
from distill_jax.runtime.text import printable
from distill_jax.sampling.prompts import Text

PATHS = ("path", "data_dir")  # Options of the package's datasets that are paths.
MANY = 20_000  # Images that are opened in seconds.
CAPTIONS = 100_000  # Number of captions whose length is checked.
SHOWN = 8  # Number of names that a line shows.


def absolute_paths(data: Mapping[str, Any]) -> dict[str, str]:
    """Returns the options of a dataset that are paths, as absolute ones that fit any directory.

    The options of a dataset of the user's own are left out.
    """
    keys = () if ":" in str(data.get("name")) else PATHS
    paths = {key: data.get(key) for key in keys}
    return {key: str(absolute(path)) for key, path in paths.items() if path and type(path) is str}


def record(dataset: Dataset) -> dict[str, Any]:
    """Returns the summary of a dataset as data.json and manifests have it; {} if it is unknown."""
    found = summarise(dataset)
    if not found.fingerprint:
        return {}
    counts, classes = dict(found.counts), len(found.classes)
    known = {"fingerprint": found.fingerprint, "counts": counts, "classes": classes}
    return {**known, "captions": dict(found.captions)} if found.captions else known


def show(name: str, dataset: Dataset) -> list[str]:
    """Returns what the data are, and what was passed over, in one or two lines."""
    found = summarise(dataset)
    counts = " + ".join(f"{count:,} {split}" for split, count in found.counts.items())
    kinds = [_captions(found) if found.captions else _classes(found)]
    parts = [f"{counts} images" if counts else "", *kinds, *found.notes]
    lines = [f"data: {name}, {'; '.join(part for part in parts if part)}"]
    if found.passed:
        more = ["..."] if len(found.passed) > SHOWN else []
        lines.append(f"  passed over: {'; '.join([*found.passed[:SHOWN], *more])}")
    return [printable(line) for line in lines]


def _captions(found: Summary) -> str:
    number, different = found.captions["all"], found.captions["different"]
    kind = "captions" if found.counts else "prompts without images"
    return f"{number:,} {kind}, {different:,} different"


def _classes(found: Summary) -> str:
    names, number = list(found.classes), len(found.classes)
    if number < 2:
        return "no classes"
    if names == [str(i) for i in range(number)]:
        return f"{number:,} classes: 0 to {number - 1}"
    shown = [*names[: SHOWN - 1], "...", names[-1]] if number > SHOWN else names
    return f"{number:,} classes: {', '.join(name[:40] for name in shown)}"


def check_images(dataset: Dataset, known: Mapping[str, Any]) -> None:
    """Opens all images of a dataset, each process a share, unless that was done for this run.

    Args:
      dataset: the dataset.
      known: content of the run's data.json, which the run writes after this check.

    Raises:
      ValueError: for images that cannot be used, with their number and the first names.
    """
    total = sum(summarise(dataset).counts.values())
    if not has_images(dataset):
        return
    if known and known == record(dataset):
        for split in ("train", "test"):  # Fails before the training if data are missing.
            dataset.images(split, 1)
        return
    if total > MANY:
        logging.say(f"data: opening the {total:,} images once, to find any that cannot be read")
    opened, problems = check(dataset, (jax.process_index(), jax.process_count()))
    counts = distributed.allgather(np.asarray([[opened, len(problems)]]))
    opened, bad = (int(count) for count in counts.sum(axis=0))
    if bad:
        names = [text.removesuffix(ADVICE) for text in sorted(problems)[:3]]
        more = "; and others" if bad > 3 else ""
        first = "; ".join(names) or "see the messages of the other processes"
        raise ValueError(
            f"{bad:,} of {total:,} images cannot be used: {first}{more}"
            f"{ADVICE}, or, in a folder, pass over them with the option skip_unreadable=True"
        )
    if opened < total and total > MANY:
        logging.say(
            f"data: opened {opened:,} of them in time; others are opened when they are drawn"
        )


def say_cut(dataset: Dataset, conditioner: Text) -> None:
    """Says how many captions the text encoder does not see whole, and what is cut of the first.

    Training then causes no warning for each of them.
    """
    source = dataset.source if isinstance(dataset, Encoded) else dataset
    # Captions that are not counted yet are read with their images.
    num = CAPTIONS if summarise(source).captions else 1_000
    texts = list(dict.fromkeys(captions_of(source, "train", num)))
    notes = conditioner.notes(texts)
    if notes:
        logging.say(
            f"data: {len(notes):,} of {len(texts):,} different captions are cut, or have unknown "
            f"words: {notes[0]}"
        )


def read_record(workdir: epath.Path) -> dict[str, Any]:
    """Returns the content of data.json; {} if there is none or it is damaged, which is said."""
    path = workdir / "data.json"
    try:
        content: dict[str, Any] = read_json(path) if path.exists() else {}
    except ValueError as error:
        logging.set_damaged_aside(path, str(error))
        return {}
    return content
