"""Writing of a student's sampler as ONNX, with the converter jax2onnx and a check of the result.

https://github.com/enpasos/jax2onnx (Apache-2.0). It gets the traced program and not our functions,
because it replaces functions of JAX by its own while it traces.
"""

import dataclasses
import importlib
import importlib.util
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.extend
import numpy as np
from etils import epath

from distill_jax.runtime.app import cause_of
from distill_jax.sampling.program import Program, program_of
from distill_jax.sampling.student import Student
from distill_jax.teachers.descriptions import batch_of, new_program, tried, write_description

TOLERANCE = 1e-4  # Of images in [-1, 1]; a grey level is 8e-3.
TRIED = 2  # Images of the check.


def write(
    student: Student,
    out: epath.PathLike,
    num_steps: int | None = None,
    batch: int | None = None,
) -> epath.Path:
    """Writes a student's sampler as an ONNX file, and FILE.json beside it.

    Its images start from noise that is given, because ONNX has no random numbers of JAX. The file
    is written if onnxruntime draws the student's images with it to TOLERANCE, in the student's own
    number of steps.

    Args:
      student: a loaded student.
      out: new file, *.onnx.
      num_steps: number of steps, see program_of.
      batch: number of images of a call; None for any.

    Returns:
      The file.

    Raises:
      ValueError: without jax2onnx, for a student that program_of or jax2onnx refuses, for images
        that differ, and for an `out` that exists.
    """
    for name in ("jax2onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise ValueError(f'--format=onnx needs {name}; run pip install -e ".[onnx]"')
    out = new_program(out, ".onnx")
    program = program_of(_single(student), "noise", num_steps)
    with student.precision():
        content = _converted(program, batch, student.manifest.stage)
        arrays = tried(program, batch or TRIED, student.trained.num_steps)
        largest = deviation(program, content, arrays)
    if not largest <= TOLERANCE:
        raise ValueError(
            f"onnxruntime's images of {student.manifest.stage} differ by {largest:.1e}, more than "
            f"{TOLERANCE:g}; take --format=stablehlo"
        )
    facts = {"format": "onnx", "deviation": largest}
    return write_description(student, program, batch, facts, out, content)


def _single(student: Student) -> Student:
    """Returns a student with float32 weights: jax2onnx makes wrong programs of mixed dtypes."""
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), student.merged.params)
    return dataclasses.replace(student, params=params)


def _converted(program: Program, batch: int | None, stage: str) -> bytes:
    """Returns the program as the content of an ONNX file.

    Raises:
      ValueError: for a program that jax2onnx cannot convert.
    """
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # It notes shapes without a dtype.
    # 0.13 logs an error for a plugin of another library's operations, which does not fit JAX 0.10.
    logging.getLogger("jax2onnx").setLevel(logging.CRITICAL)
    converter: Any = importlib.import_module("jax2onnx")
    examples = program.examples(batch_of(batch))
    try:
        traced = jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(program.call)(*examples))
        names = [each.name for each in program.inputs]
        made = converter.to_onnx(
            traced, examples, model_name=stage, input_names=names, output_names=["images"]
        )
    except Exception as error:  # Any, because the converter is another project's.
        fix = "" if batch else "try --batch=N, or "
        raise ValueError(
            f"jax2onnx cannot convert {stage} ({cause_of(error)}); {fix}take --format=stablehlo"
        ) from error
    for graph in _graphs(made.graph):
        del graph.value_info[:]  # Shapes, which 0.13 sometimes gets wrong; none is needed.
        _divide_in_sigmoids(graph)
        _drop_unused(graph)
    return bytes(made.SerializeToString())


def _graphs(graph: Any) -> Iterator[Any]:
    """Yields a graph and those of the loops and branches in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _divide_in_sigmoids(graph: Any) -> None:
    """Writes sigmoid(x) under a square root as 1 / (1 + exp(-x)) in a graph.

    These are alpha^2 and sigma^2. onnxruntime's Sigmoid has errors of 1.6e-7, and is 0 below -18.
    """
    nodes = list(graph.node)
    under_roots = {name for node in nodes if node.op_type == "Sqrt" for name in node.input}
    del graph.node[:]
    for node in nodes:
        (y, *_) = node.output
        if node.op_type != "Sigmoid" or y not in under_roots:
            graph.node.append(node)
            continue
        one = graph.node.add(op_type="Constant", output=[f"{y}_one"]).attribute.add()
        one.name, one.type, one.f = "value_float", one.FLOAT, 1.0
        graph.node.add(op_type="Neg", input=node.input, output=[f"{y}_minus"])
        graph.node.add(op_type="Exp", input=[f"{y}_minus"], output=[f"{y}_exp"])
        graph.node.add(op_type="Add", input=[f"{y}_exp", f"{y}_one"], output=[f"{y}_sum"])
        graph.node.add(op_type="Reciprocal", input=[f"{y}_sum"], output=[y])


def _drop_unused(graph: Any) -> None:
    """Removes the constants of a graph that no node takes; onnxruntime warns of each."""
    used = {each.name for inner in _graphs(graph) for each in inner.output}
    used |= {name for inner in _graphs(graph) for node in inner.node for name in node.input}
    kept = [each for each in graph.initializer if each.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def deviation(program: Program, content: bytes, arrays: Sequence[np.ndarray]) -> float:
    """Returns the largest difference between images of the program and of its ONNX file."""
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    named = {each.name: array for each, array in zip(program.inputs, arrays, strict=True)}
    theirs, ours = session.run(["images"], named)[0], np.asarray(jax.jit(program.call)(*arrays))
    return float(np.abs(theirs - ours).max()) if theirs.shape == ours.shape else math.inf
