"""Writing of a student's sampler as StableHLO, which JAX runs without this package.

https://docs.jax.dev/en/latest/export/export.html; its files stay readable for six months.
"""

import importlib.util

import jax
from etils import epath
from jax import export

from distill_jax.runtime.app import cause_of
from distill_jax.sampling.program import program_of
from distill_jax.sampling.student import Student
from distill_jax.teachers.descriptions import batch_of, new_program, write_description

PLATFORMS = ("cpu", "cuda", "tpu")
SUFFIX = ".stablehlo"


def write(
    student: Student,
    out: epath.PathLike,
    start: str = "noise",
    num_steps: int | None = None,
    batch: int | None = None,
) -> epath.Path:
    """Writes a student's sampler as a file that jax.export reads, and FILE.json beside it.

    Args:
      student: a loaded student.
      out: new file, *.stablehlo.
      start: what the images start from, see program_of.
      num_steps: number of steps, see program_of.
      batch: number of images of a call; None for any.

    Returns:
      The file.

    Raises:
      ValueError: for a student that program_of refuses, or that works only with a fixed batch, and
        for an `out` that exists.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ValueError('--format=stablehlo needs flatbuffers; run pip install -e ".[stablehlo]"')
    out = new_program(out, SUFFIX)
    program = program_of(student, start, num_steps)
    try:
        with student.precision():
            made = export.export(jax.jit(program.call), platforms=PLATFORMS)
            exported = made(*program.examples(batch_of(batch)))
    except Exception as error:  # Any, because the network's code meets a size without a value.
        if batch is not None:
            raise
        raise ValueError(
            f"{student.manifest.stage} cannot be exported for any number of images "
            f"({cause_of(error)}); fix it with --batch=N"
        ) from error
    content = bytes(exported.serialize())
    facts = {
        "format": "stablehlo",
        "platforms": PLATFORMS,
        "calling": exported.calling_convention_version,
    }
    return write_description(student, program, batch, facts, out, content)
