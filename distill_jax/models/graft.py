"""First parameters of a student: the teacher's, and fresh parameters for new modules."""

from collections.abc import Iterable
from typing import Any

import jax

from distill_jax.runtime.trees import by_name, name_of
from distill_jax.typing import Tree


def graft(fresh: Tree, teacher: Tree, new: Iterable[str] = ()) -> Tree:
    """Returns the teacher's parameters in the structure of `fresh`, with fresh `new` modules.

    The result has the types of `fresh`: the student of a bfloat16 teacher trains float32 copies.

    Args:
      fresh: newly initialised parameters of the student.
      teacher: parameters of the teacher.
      new: names of modules, anywhere on a path, that the teacher may lack.

    Raises:
      ValueError: for the first leaf that does not fit, with its name.
    """
    have = by_name(teacher)
    new = tuple(new)

    def pick(path: tuple, leaf: Any) -> Any:
        name = name_of(path)
        if name not in have and any(part in new for part in name.split("/")):
            return leaf
        if name not in have:
            raise ValueError(
                f"the teacher has no parameter {name} {leaf.shape}; if the student is meant to "
                f"start with a new one, name its module in the stage's `new` (now {new})"
            )
        if have[name].shape != leaf.shape:
            raise ValueError(
                f"parameter {name} is {have[name].shape} in the teacher and {leaf.shape} in the "
                "student; teacher and student need the same model settings"
            )
        return have.pop(name).astype(leaf.dtype)

    grafted = jax.tree_util.tree_map_with_path(pick, fresh)
    for name, leaf in have.items():
        raise ValueError(f"the student has no parameter {name} {leaf.shape}, which the teacher has")
    return grafted
