"""Descriptions of exported samplers: a file of JSON, and the tokenizers, beside each program."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jax import export

from distill_jax.runtime import record
from distill_jax.sampling.program import BATCH, STEPS, Input, Program, names_of_tokens
from distill_jax.sampling.student import Student
from distill_jax.teachers.directories import new_file


def new_program(out: epath.PathLike, suffix: str) -> epath.Path:
    """Returns the path of a program that can be written; raises ValueError as new_file."""
    return new_file(out, "a program of this format", suffix, ".json")


def batch_of(batch: int | None) -> Any:
    """Returns the number of images of a call, or the symbol of any number."""
    return export.symbolic_shape(BATCH)[0] if batch is None else batch


def write_description(
    student: Student,
    program: Program,
    batch: int | None,
    facts: Mapping[str, Any],
    out: epath.Path,
    content: bytes,
) -> epath.Path:
    """Writes a program, its description FILE.json, and the tokenizers that its prompts need.

    Args:
      student: the student.
      program: its sampler.
      batch: number of images of a call; None for any, "b" in the shapes.
      facts: what is to be said first, such as the format.
      out: the file of the program, which appears last.
      content: its bytes.

    Returns:
      The file.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    described = {
        **facts,
        "file": out.name,
        "stage": student.manifest.stage,
        "inputs": [_described(each, batch) for each in program.inputs],
        "outputs": [_described(program.output, batch)],
        "calls": program.calls,
        "versions": record.versions(("jax",)),
    }
    if student.text is not None:
        described["tokenizers"] = _write_tokenizers(student, out)
    out.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n")
    partial = out.parent / f"{out.name}.partial"
    partial.write_bytes(content)
    partial.replace(out)
    return out


def _described(each: Input, batch: int | None) -> dict[str, Any]:
    """Returns an input or output as plain data."""
    shape = [batch if side == BATCH and batch is not None else side for side in each.shape]
    return {**each._asdict(), "shape": shape}


def _write_tokenizers(student: Student, out: epath.Path) -> list[dict[str, Any]]:
    """Writes each tokenizer as the library tokenizers reads it; returns what is said of them."""
    text, found = student.text, []
    assert text is not None
    for name, tokenizer in zip(names_of_tokens(text), text.tokenizers, strict=True):
        file = out.parent / f"{out.stem}.{name}.json"
        file.write_text(tokenizer.text)
        facts = {key: getattr(tokenizer, key) for key in ("length", "start", "end", "pad")}
        found.append({"input": name, "file": file.name, **facts})
    return found


def tried(program: Program, num: int, num_steps: int) -> list[np.ndarray]:
    """Returns inputs to try a program with: noise, and values from the whole of each range.

    `num_steps` is the number of steps where that is an input.
    """
    rng, found = np.random.default_rng(0), []
    for each, like in zip(program.inputs, program.examples(num), strict=True):
        if each is STEPS:
            values = np.asarray(num_steps)
        elif each.range is None:
            values = rng.standard_normal(like.shape) if like.dtype == np.float32 else np.arange(num)
        else:
            low, high = each.range  # A large w enlarges differences of rounding.
            values = rng.uniform(low, min(high, low + 4), like.shape)
        found.append(np.asarray(values).astype(like.dtype))
    return found
