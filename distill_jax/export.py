"""Writes a finished student in the format of another library.

python -m distill_jax.export --student=runs/digits --format=safetensors --out=digits.safetensors
python -m distill_jax.export --student=runs/digits --format=stablehlo --out=digits.stablehlo
python -m distill_jax.export --student=runs/digits --format=onnx --out=onnx/digits.onnx
python -m distill_jax.export --student=runs/sd15 --source=stable-diffusion-v1-5 --out=sd15_4_steps
python -m distill_jax.export --student=runs/sd15_dmd2 --format=lora --out=sd15_dmd2.safetensors
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import flags
from etils import epath

from distill_jax.runtime import logging
from distill_jax.runtime.app import needed, run_app
from distill_jax.runtime.files import absolute
from distill_jax.runtime.options import MAX_NUM, MAX_STEPS
from distill_jax.sampling import loading
from distill_jax.sampling.program import ANY, STARTS
from distill_jax.teachers import native, onnx, pipelines, stablehlo
from distill_jax.teachers.lora import STYLES, write_lora


class Format(NamedTuple):
    """A format of the result.

    Attributes:
      write: maps a student, --out and the flags that it takes to what it wrote.
      takes: names of those flags.
      next: what to do with the result, for its message.
      loaded: whether the student's weights are loaded first; adapters are read without their base.
    """

    write: Callable[..., epath.Path]
    takes: tuple[str, ...]
    next: str
    loaded: bool = True


BESIDE = "{name}.json says what it takes"
FORMATS = {
    "diffusers": Format(pipelines.write_pipeline, ("source",), "its README.md says how to call it"),
    **{
        style: Format(
            functools.partial(write_lora, style=style), (), "{name}.md says how to load them", False
        )
        for style in STYLES
    },
    "safetensors": Format(
        native.write, (), "next: python -m distill_jax.teachers safetensors {out} --out=DIR"
    ),
    "stablehlo": Format(stablehlo.write, ("start", "num_steps", "batch"), BESIDE),
    "onnx": Format(onnx.write, ("num_steps", "batch"), BESIDE),
}


def define_flags() -> None:
    """Defines the flags of the command; not at import, because commands share flag names."""
    loading.define_flags()
    flags.DEFINE_string("student", None, "Directory of the student: a run, a stage or its final/.")
    flags.DEFINE_enum(
        "format",
        "diffusers",
        list(FORMATS),
        "Format of the result: a pipeline of diffusers; the student's adapters as a LoRA, with the "
        "names of PEFT (lora) or of Kohya; one file with the whole student (safetensors); its "
        "sampler as a program (stablehlo, onnx).",
    )
    flags.DEFINE_string(
        "source",
        None,
        "Pipeline of the student's teacher, whose autoencoder, text encoder and tokenizer are "
        "copied; for the format diffusers.",
    )
    flags.DEFINE_enum(
        "start",
        None,
        list(STARTS),
        "What the images of stablehlo start from: noise that is given (the default), or a seed.",
    )
    flags.DEFINE_integer(
        "num_steps",
        None,
        "Steps of stablehlo and onnx; 0 makes them an input, for networks that take any number.",
        lower_bound=ANY,
        upper_bound=MAX_STEPS,
    )
    flags.DEFINE_integer(
        "batch",
        None,
        "Images of each call of stablehlo and onnx; any number without it.",
        lower_bound=1,
        upper_bound=MAX_NUM,
    )
    flags.DEFINE_string("out", None, "New directory or file to write.")


def main() -> None:
    """Loads the student and writes --out."""
    values = flags.FLAGS
    directory, out = needed("student"), absolute(needed("out", ": what to write"))
    kind = FORMATS[values.format]
    options = _options(values, kind)
    load = loading.load if kind.loaded else loading.describe
    student = load(directory, None, loading.parts(values), values.allow)
    written = kind.write(student, out=out, **options)
    what = f"{student.manifest.stage} as {values.format}"
    then = kind.next.format(name=written.stem, out=written)
    logging.say(f"wrote {what} to {out}; {then}")


def _options(values: Any, kind: Format) -> dict[str, Any]:
    """Returns the given flags that a format takes; raises ValueError for those of other formats."""
    known = dict.fromkeys(name for each in FORMATS.values() for name in each.takes)
    given = {name: values[name].value for name in known if values[name].value is not None}
    for name, value in given.items():
        if name not in kind.takes:
            raise ValueError(
                f"--{name}={value} is not read with --format={values.format}; leave it out"
            )
    if "source" in kind.takes:
        given["source"] = needed("source", ": the pipeline of the student's teacher")
    return given


if __name__ == "__main__":
    define_flags()
    run_app(main)
