"""The part of the evaluate command that measures a folder of images with captions."""

from typing import Any

import jax
from absl import flags

from distill_jax.evaluation import text_protocols, text_scores
from distill_jax.evaluation.feature_networks import load_network
from distill_jax.evaluation.quality import Score
from distill_jax.evaluation.text_protocols import FAMILIES
from distill_jax.runtime import distributed, logging
from distill_jax.runtime.app import needed
from distill_jax.runtime.files import absolute, write_json
from distill_jax.runtime.sharding import make_layout


def define_flags() -> None:
    """Defines the flags for captions; not at import, because commands share flag names."""
    flags.disclaim_key_flags()  # So that the flags are key flags of the command that calls this.
    flags.DEFINE_string("captions", None, "Captions of --images: .txt, a line each, or .jsonl.")
    flags.DEFINE_list(
        "text_scores",
        [],
        f"Scores of --images with --captions, NAME:DIRECTORY,...: {', '.join(text_scores.KINDS)}.",
    )
    flags.DEFINE_enum(
        "text_protocol", "plain", list(FAMILIES), "Family of the protocols for --captions."
    )
    flags.DEFINE_string("real", None, "Real pictures for distances of --images with --captions.")


def run(values: Any) -> None:
    """Measures the images of --images with --captions, in the first process; prints the scores."""
    folder = needed("images", ": the folder of the pictures whose captions are in --captions")
    if not values.text_scores and not values.real:
        raise ValueError(
            "--captions needs --text_scores=clip:DIRECTORY, the networks, or --real=DIRECTORY, "
            "real pictures, or both"
        )
    pairs = [entry.partition(":")[::2] for entry in values.text_scores]
    for name, place in pairs:
        if not name or not place:
            raise ValueError(f"--text_scores={name}; expected NAME:DIRECTORY, such as clip:DIR")
    if not distributed.first():
        return
    layout = make_layout({"data": -1}, jax.local_devices())
    given = text_protocols.read_captions(folder, values.captions)
    scorers = [text_scores.load_scorer(name, place, layout) for name, place in pairs]
    scores, notes = text_protocols.text_scores(given, values.text_protocol, scorers)
    if values.real:
        features = values.features or "inception"
        family = FAMILIES[values.text_protocol]
        resize = family.resize if features == "inception" else None
        network = load_network(features, method=resize, layout=layout)
        real = values.real
        scores |= text_protocols.distances(given, values.text_protocol, real, network)
    _show(scores, notes)
    if values.out:
        rows = {name: score._asdict() for name, score in scores.items()}
        write_json(absolute(values.out), {"images": str(folder), "scores": rows})


def _show(scores: dict[str, Score], notes: list[str]) -> None:
    """Prints the scores, each with its protocol and remark, and how many captions were cut."""
    for name, (value, error, protocol, remark) in scores.items():
        spread = "" if error is None else f" +- {error:.2g}"
        logging.show(f"{name} {value:.5g}{spread}: {protocol}")
        if remark:
            logging.show(f"* {remark}")
    if notes:
        logging.show(f"* {len(notes):,} captions are too long: {notes[0]}")
