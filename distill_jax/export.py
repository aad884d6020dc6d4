"""Writes a finished student in the format of another library.

python -m distill_jax.export --student=runs/sd15 --source=stable-diffusion-v1-5 --out=sd15_4_steps
"""

from absl import flags

from distill_jax.runtime import logging
from distill_jax.runtime.app import needed, run_app
from distill_jax.runtime.files import absolute
from distill_jax.sampling import loading
from distill_jax.teachers.pipelines import write_pipeline


def define_flags() -> None:
    """Defines the flags of the command; not at import, because commands share flag names."""
    loading.define_flags()
    flags.DEFINE_string("student", None, "Directory of the student: a run, a stage or its final/.")
    flags.DEFINE_enum("format", "diffusers", ["diffusers"], "Format of the result.")
    flags.DEFINE_string(
        "source",
        None,
        "Pipeline of the student's teacher, whose autoencoder, text encoder and tokenizer are "
        "copied.",
    )
    flags.DEFINE_string("out", None, "New directory to write.")


def main() -> None:
    """Loads the student and writes --out."""
    values = flags.FLAGS
    directory, out = needed("student"), absolute(needed("out", ": the new directory to write"))
    source = needed("source", ": the pipeline of the student's teacher")
    student = loading.load(directory, None, loading.parts(values), values.allow)
    write_pipeline(student, source, out)
    logging.say(
        f"wrote {student.manifest.stage} as a pipeline of diffusers to {out}; its README.md says "
        "how to call it"
    )


if __name__ == "__main__":
    define_flags()
    run_app(main)
