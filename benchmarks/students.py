"""Makes the students that come with the package from finished runs, with float16 weights.

Their last DROPPED bits are 0, so that the files are smaller.

python benchmarks/students.py                     # runs/digits_guided and runs/shapes_guided
python benchmarks/students.py --root=/tmp/runs --only=shapes --out=/tmp/students

Each becomes a workdir of the last student and the teacher, with codec and text encoder.
"""

import argparse
import dataclasses
import pathlib
import shutil

import jax
import numpy as np
from etils import epath

from distill_jax.evaluation import compare
from distill_jax.runtime import logging
from distill_jax.sampling.loading import STUDENTS, load
from distill_jax.sampling.manifest import PARTS
from distill_jax.storage import checkpoint

RUNS = {"digits": "digits_guided", "shapes": "shapes_guided"}
MAX_BYTES = 3_000_000  # Of a network.
DROPPED = 3  # Of the 11 significant bits.


def shortened(leaf):
    """Returns float16 weights rounded to fewer bits; other leaves as they are."""
    if leaf.dtype != np.float16:
        return leaf
    unit = 1 << DROPPED
    bits = np.asarray(leaf).view(np.uint16).astype(np.uint32) + unit // 2
    return (bits // unit * unit).astype(np.uint16).view(np.float16)


def write(student, out, **changes):
    """Writes a network into its stage in `out`; metrics are left out, because weights differ."""
    manifest = dataclasses.replace(student.manifest, metrics={}, **changes)
    final = out / manifest.stage / "final"
    checkpoint.save_final(final, jax.tree.map(shortened, student.params), manifest.to_json())
    size = sum(file.stat().st_size for file in pathlib.Path(final).rglob("*") if file.is_file())
    logging.show(f"{final}: {size:,} bytes")
    if size > MAX_BYTES:
        raise ValueError(f"{final} has {size:,} bytes; expected at most {MAX_BYTES:,}")


def package(run, out):
    """Writes the last student of a run, and its teacher, whose stages between are left out."""
    if out.exists():
        raise ValueError(f"{out} exists; remove it first")
    student = load(run, dtype="float16")
    teacher = load(compare.root(student).directory, dtype="float16")
    for name in PARTS:
        if getattr(student.manifest, name) is not None:
            shutil.copytree(epath.Path(run) / name / "final", out / name / "final")
    between = [path.name for path in sorted(epath.Path(run).glob("s[0-9]*_*"))][1:-1]
    parent = f"../../{teacher.manifest.stage}/final"
    lineage = dataclasses.replace(
        student.manifest.lineage, parent=parent, source={"format": "chain", "between": between}
    )
    write(student, out, lineage=lineage)
    write(teacher, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="runs", help="folder of the runs")
    parser.add_argument("--only", choices=RUNS, help="one of the students")
    parser.add_argument("--out", default=str(STUDENTS), help="folder of the students")
    given = parser.parse_args()
    for name, run in RUNS.items():
        if given.only in (None, name):
            package(epath.Path(given.root) / run, epath.Path(given.out) / name)


if __name__ == "__main__":
    main()
