"""Definitions of a report's measures in words: its protocol, and the measures of real images."""

import re
from collections.abc import Mapping
from typing import Any

# The start of the definition of a measure: its name, and a colon.
MEASURE = re.compile(r"(?<=\.) (?=[\w-][\w ,-]{0,40}: )")
# Definition of an evaluator's distance, by kind; {0} is its name, {1} the number of samples.
DISTANCES = {
    "SW2": "{0}: sliced Wasserstein-2 distance to the training points of a class, mean over "
    "classes, {1} samples, classes in turn. {0} worst class: the largest of these distances. "
    "recall: the fraction of training points that are in the ball of some sample, whose radius is "
    "the distance to its third neighbour, with 5,000 of each.",
    "FD": "{0}: Frechet distance to the training images in the features of a classifier trained "
    "on them, on the CPU in full precision, {1} samples, classes in turn; not FID. "
    "{0}-to-teacher: the distance to the guided teacher's samples at its full number of steps. "
    "accuracy: the classifier's accuracy on the requested classes. recall: the fraction of "
    "training images that are in the ball of some sample, in the classifier's features, whose "
    "radius is the distance to its third neighbour.",
    "wrong": "{0}: the fraction of pictures that do not show what their prompt says, read from the "
    "pixels, {1} samples. colour, shape, relation, count: the fractions where each is right; all: "
    "where all are. These prompts have the training's pairs of colour and shape; held-out pairs "
    "are in no training caption. spread: standard deviation in pixels of the place of the first "
    "object, in pictures of one prompt; a sampler that has collapsed draws the same one. PSNR: in "
    "dB, to the guided teacher's sample from the same noise.",
}


# Follows the definition of a distance in a published network.
PUBLISHED = (
    ", {1} samples, classes in turn. {0}-to-teacher: the distance to the guided teacher's samples "
    "at its full number of steps. MIND: 3 d times the mean squared difference of sorted "
    "projections on 1,000 directions, which few samples bias less. accuracy: that of a logistic "
    "regression on the features. retrieval: the fraction of samples whose prompt is nearer than 99 "
    "others to what a linear regression from features to words predicts. precision and recall: the "
    "fractions of samples and of training images that are in a ball of the other set, whose radius "
    "is the distance to the third "
    "neighbour."
)


def protocol(name: str, num: int, definition: str = "") -> str:
    """Returns the definitions of all measures in a few sentences.

    Args:
      name: name of the distance.
      num: number of samples.
      definition: definition of the distance in a published network, see protocols.Evaluator.
    """
    return _measures(definition, name).format(name, num) + (
        " l2: root mean square difference per pixel, in [-1, 1], to the guided teacher's sample "
        "from the same noise. calls: network calls per image. seconds per image: wall clock of the "
        "whole set over its size, compiled. variance: the weight in [0, 1] of the ancestral "
        "sampler's large variance, the best of those tried. student: DDIM with the student's own "
        "number of steps; student, stochastic: the sampler of long steps and fresh noise; student, "
        "another name: that method's own sampler."
    )


def distance(name: str, num: int, definition: str = "") -> str:
    """Returns the definition of the distance only; arguments are those of `protocol`."""
    return _measures(definition, name).partition(". ")[0].format(name, num)


def _measures(definition: str, name: str) -> str:
    """Returns the definitions of the measures of samples."""
    return definition + PUBLISHED if definition else DISTANCES[kind(name)]


def kind(name: str) -> str:
    """Returns the kind of a distance, such as FD for FD-digits."""
    return "FD" if name == "FID" else name.partition("-")[0]


def real(content: Mapping[str, Any]) -> str:
    """Returns the measures of real images in words.

    Args:
      content: summary of an evaluator, or content of report.json.
    """
    name, floor = content["name"], content["floor"]
    found, accuracy = content["real_recall"], content.get("real_accuracy")
    if "chance" in floor:
        codec = f", {floor['codec']:.3g} after the codec" if "codec" in floor else ""
        return (
            f"Of real pictures {floor['test']:.3g} are wrong{codec}, and {floor['chance']:.3g} "
            "with the captions of others, which is chance."
        )
    codec = f" ({floor['codec']:.3g} after the codec)" if "codec" in floor else ""
    text = (
        f"Floor of {name}: {floor['halves']:.3g} between two halves of the training images, "
        f"{floor['test']:.3g} between training and test images{codec}. "
        f"The recall of one half of the training images by the other is {found:.3f}. "
    )
    if real := content.get("real_retrieval"):
        codec = f", {real['codec']:.3f} after the codec" if "codec" in real else ""
        text += f"Of test images {real['test']:.3f} are found by their captions{codec}. "
    if accuracy is not None:
        text += f"The classifier's accuracy on test images is {accuracy:.3f}. "
    elif content.get("rotation_accuracy") is not None:
        text += (
            "The data have no labels, so the classifier was trained on quarter turns. It is right "
            f"about {content['rotation_accuracy']:.3f} of test images (chance is 0.25, where its "
            "features would be useless). "
        )
    return text + (
        "Guidance (w > 0) moves samples away from the data on purpose, so for w > 0 read the "
        "distance to the teacher."
    )


def listed(protocol: str) -> str:
    """Returns a protocol as a Markdown list with an item for every measure."""
    return "\n".join(f"* {part}" for part in MEASURE.split(protocol.strip()))
