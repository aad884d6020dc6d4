"""Measures finished networks against the data and the teacher, or images against a reference.

python -m distill_jax.evaluate --student=runs/digits_guided
python -m distill_jax.evaluate --student=runs/digits_guided/s07_n0001 --w=0.5,1.5 --num=5000
python -m distill_jax.evaluate --images=samples.npz --reference=cifar10.npz --features=inception
python -m distill_jax.evaluate --images=samples --captions=captions.txt --text_scores=clip:g14
"""

from typing import Any

import jax
from absl import flags

from distill_jax.evaluation import (
    chosen_data,
    compare,
    definitions,
    diversity,
    image_files,
    report,
    text_command,
)
from distill_jax.evaluation.feature_networks import NAMES, load_network
from distill_jax.evaluation.protocols import make_evaluator, prompts_for
from distill_jax.evaluation.quality import measure, scores_table
from distill_jax.evaluation.references import read_reference
from distill_jax.metrics.resizing import RESIZES
from distill_jax.runtime import distributed, logging
from distill_jax.runtime.app import needed, numbers, run_app
from distill_jax.runtime.files import absolute, write_json
from distill_jax.runtime.sharding import make_layout
from distill_jax.sampling import loading
from distill_jax.sampling.batched import Draw

OF_STUDENT = ("w", "num", "ancestral", "config", "data")  # Flags that say nothing about --images.
OF_IMAGES = ("reference", "resize", "reference_resize", "infinity", "unlike")


def define_flags() -> None:
    """Defines the flags of the command; not at import, because commands share flag names."""
    distributed.define_flags()
    loading.define_flags()
    flags.DEFINE_string("student", None, "A workdir, a stage or a final/ directory.")
    flags.DEFINE_list("w", None, "Guidance strengths, by default 0, 1, 2, 4.")
    flags.DEFINE_list("ancestral", [], "Variances, 0 small to 1 large, of the teacher's sampler.")
    chosen_data.define_flags()
    flags.DEFINE_integer("num", 2000, "Samples per row.", lower_bound=2)
    flags.DEFINE_string(
        "features", "", f"{NAMES.expected}; by default the features are trained on the data."
    )
    flags.DEFINE_string("out", None, "Also write the numbers to this JSON file.")
    flags.DEFINE_string("images", None, "A folder of pictures, or an .npz or .npy of uint8.")
    flags.DEFINE_string("reference", None, "Reference for --images: of the reference command, ...")
    flags.DEFINE_enum("resize", None, RESIZES, "Resize for --images; the network's usual one.")
    flags.DEFINE_enum(
        "reference_resize", None, RESIZES, "Resize of a reference that does not say its own."
    )
    flags.DEFINE_bool("infinity", False, "Extrapolate the distance to infinitely many --images.")
    flags.DEFINE_bool("unlike", False, "Accept a reference of other weights or another resize.")
    text_command.define_flags()


def main() -> None:
    """Measures what --student or --images names, and prints the numbers."""
    values = flags.FLAGS
    if (values.student is None) == (values.images is None):
        raise ValueError("give either --student, a finished run, or --images, a set of images")
    mine, others = ("--images", OF_STUDENT) if values.images else ("--student", OF_IMAGES)
    for name in (name for name in others if flags.FLAGS[name].present):
        raise ValueError(f"--{name} has no meaning for {mine}; leave it out")
    if values.out:
        absolute(values.out).parent.mkdir(parents=True, exist_ok=True)
    distributed.join()
    if values.captions:
        text_command.run(values)
    else:
        (_compare if values.images is None else _score)(values)


def _score(values: Any) -> None:
    """Measures the images of --images against --reference, in the first process."""
    file = needed("reference", ": a file of python -m distill_jax.reference, of ADM, EDM, ...")
    if not values.features:
        raise ValueError(f"--images needs --features, {NAMES.expected}")
    if not distributed.first():
        return
    images = image_files.read(absolute(values.images))
    network = load_network(
        values.features, method=values.resize, layout=make_layout({"data": -1}, jax.local_devices())
    )
    reference, remark = read_reference(file, network, values.reference_resize)
    reference.check(network, values.unlike)
    batches = logging.followed("features", images.batches(), images.num)
    scores = measure(batches, network, reference, images.made, values.infinity, values.unlike)
    logging.show(scores_table(scores))
    remarks = [remark, images.remark, *(score.remark for score in scores.values())]
    for text in dict.fromkeys(filter(None, remarks)):
        logging.show(f"* {text}")
    if values.out:
        rows = {name: score._asdict() for name, score in scores.items()}
        write_json(absolute(values.out), {"images": images.name, "scores": rows})


def _compare(values: Any) -> None:
    """Measures the network of --student beside its teacher."""
    directory = values.student
    strengths, ancestral = numbers("w") or [0.0, 1.0, 2.0, 4.0], numbers("ancestral")
    layout = make_layout({"data": -1})
    student = loading.describe(directory, layout, loading.parts(values), values.allow)
    for w in strengths if values.w else ():
        if not student.takes_prompts:
            student.conditions(1, 0 if student.num_classes else None, w)
        if not compare.knows(student, w):
            low, high = student.trained.guidance.w_range  # type: ignore[misc]  # Others know every w.
            raise ValueError(f"--w={w:g}, and this student takes w from {low:g} to {high:g}")
    distilled = student.manifest.distilled
    teacher, students = (compare.root(student), [student]) if distilled else (student, [])
    if not all(0 <= variance <= 1 for variance in ancestral):
        raise ValueError(f"--ancestral={ancestral}; expected numbers from 0 to 1")
    if ancestral and teacher is None:
        raise ValueError("--ancestral samples the student's teacher, which no longer exists")
    Draw(values.num).check_room(student)
    data = chosen_data.choose(student, values)
    evaluator = make_evaluator(data, values.features) if distributed.first() else None
    planned = compare.entries(teacher, students, strengths, ancestral)
    prompts = prompts_for(data, values.num)
    rows = list(compare.compare(evaluator, planned, values.num, prompts=prompts))
    if evaluator is None:
        return
    evaluator.floor |= evaluator.with_codec(loading.codec_of(student))
    content = {**report.summary(evaluator, student, values.num, prompts), "rows": rows}
    logging.show(content["protocol"])
    logging.show(definitions.real(content))
    logging.show(report.rows_table(rows))
    logging.show(f"{content['diversity']['definition']}\n\n{diversity.section(content)}")
    if values.out:
        write_json(absolute(values.out), content)


if __name__ == "__main__":
    define_flags()
    run_app(main)
