"""Measures finished networks against the data and the teacher.

python -m distill_jax.evaluate --student=runs/digits_guided
python -m distill_jax.evaluate --student=runs/digits_guided/s07_n0001 --w=0.5,1.5 --num=5000
"""

from absl import flags

from distill_jax.evaluation import chosen_data, compare, report
from distill_jax.evaluation.feature_networks import KINDS
from distill_jax.evaluation.protocols import make_evaluator
from distill_jax.runtime import distributed, logging
from distill_jax.runtime.app import needed, numbers, run_app
from distill_jax.runtime.files import absolute, write_json
from distill_jax.runtime.sharding import make_layout
from distill_jax.sampling import loading
from distill_jax.sampling.batched import Draw


def define_flags() -> None:
    """Defines the flags of the command; not at import, because commands share flag names."""
    distributed.define_flags()
    loading.define_flags()
    flags.DEFINE_string("student", None, "A workdir, a stage or a final/ directory.")
    flags.DEFINE_list("w", None, "Guidance strengths, by default 0, 1, 2, 4.")
    flags.DEFINE_list("ancestral", [], "Variances, 0 small to 1 large, of the teacher's sampler.")
    chosen_data.define_flags()
    flags.DEFINE_integer("num", 2000, "Samples per row.", lower_bound=2)
    flags.DEFINE_enum(
        "features", "", ["", *KINDS], "Network of the features; by default one trained on the data."
    )
    flags.DEFINE_string("out", None, "Also write the rows to this JSON file.")


def main() -> None:
    """Measures the network of --student, and prints the table."""
    values = flags.FLAGS
    directory = needed("student")
    strengths, ancestral = numbers("w") or [0.0, 1.0, 2.0, 4.0], numbers("ancestral")
    if values.out:
        absolute(values.out).parent.mkdir(parents=True, exist_ok=True)
    distributed.join()
    layout = make_layout({"data": -1})
    student = loading.describe(directory, layout, loading.parts(values), values.allow)
    for w in strengths if values.w else ():
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
    rows = list(compare.compare(evaluator, planned, values.num))
    if evaluator is None:
        return
    logging.show(report.protocol(evaluator.name, values.num, evaluator.definition))
    logging.show(report.rows_table(rows))
    if values.out:
        write_json(absolute(values.out), {**evaluator.summary(), "rows": rows})


if __name__ == "__main__":
    define_flags()
    run_app(main)
