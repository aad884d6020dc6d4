"""Writes a finished student in the format of another library.

python -m distill_jax.export --student=runs/sd15 --source=stable-diffusion-v1-5 --out=sd15_4_steps
python -m distill_jax.export --student=runs/sd15_dmd2 --format=lora --out=sd15_dmd2.safetensors
"""

from absl import flags

from distill_jax.runtime import logging
from distill_jax.runtime.app import needed, run_app
from distill_jax.runtime.files import absolute
from distill_jax.sampling import loading
from distill_jax.teachers.lora import STYLES, write_lora
from distill_jax.teachers.pipelines import write_pipeline


def define_flags() -> None:
    """Defines the flags of the command; not at import, because commands share flag names."""
    loading.define_flags()
    flags.DEFINE_string("student", None, "Directory of the student: a run, a stage or its final/.")
    flags.DEFINE_enum(
        "format",
        "diffusers",
        ["diffusers", *STYLES],
        "Format of the result: a pipeline of diffusers, or the student's adapters as a LoRA, with "
        "the names of PEFT (lora) or of Kohya.",
    )
    flags.DEFINE_string(
        "source",
        None,
        "Pipeline of the student's teacher, whose autoencoder, text encoder and tokenizer are "
        "copied; for the format diffusers.",
    )
    flags.DEFINE_string("out", None, "New directory to write, or FILE.safetensors of a LoRA.")


def main() -> None:
    """Loads the student and writes --out."""
    values = flags.FLAGS
    directory, out = needed("student"), absolute(needed("out", ": what to write"))
    given = directory, None, loading.parts(values), values.allow
    if values.format in STYLES:
        if values.source is not None:
            raise ValueError(
                f"--source={values.source} is not read with --format={values.format}; leave it out"
            )
        student = loading.describe(*given)
        card = write_lora(student, values.format, out).with_suffix(".md")
        logging.say(
            f"wrote the adapters of {student.manifest.stage} to {out}; {card.name} says how to "
            "load them"
        )
        return
    source = needed("source", ": the pipeline of the student's teacher")
    student = loading.load(*given)
    write_pipeline(student, source, out)
    logging.say(
        f"wrote {student.manifest.stage} as a pipeline of diffusers to {out}; its README.md says "
        "how to call it"
    )


if __name__ == "__main__":
    define_flags()
    run_app(main)
