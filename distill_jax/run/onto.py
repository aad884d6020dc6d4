"""The stage option `onto`: the change of a stage is added to the weights of another network."""

from collections.abc import Container

from ml_collections import ConfigDict

from distill_jax.methods import Method
from distill_jax.run.ancestors import find_network
from distill_jax.run.stages import Ancestor, Stage, check_alike


def find_onto(
    spec: ConfigDict,
    method: Method,
    start: Ancestor | None,
    before: list[Stage],
    allow: Container[str],
) -> Ancestor | None:
    """Returns the network to which a stage's change is added; None without the option `onto`."""
    _check_kept(spec, method)
    if not spec.onto:
        return None
    if start is None or spec.new:
        raise ValueError(
            f"onto is {spec.onto!r}: the change of a stage is the difference from the network that "
            "it starts from, with the same modules; name a teacher or `init`, and leave `new` out"
        )
    onto = find_network(spec.onto, "onto", before, allow=allow)
    check_alike(onto.network_spec, start.network_spec, "onto")
    mine, theirs = method.trained(onto.network_spec.schedule).inputs, onto.trained.inputs
    if (mine, onto.whole.like.shapes) != (theirs, start.whole.like.shapes):
        raise ValueError(
            f"onto is {spec.onto!r}, a network with other parameters or inputs; expected one like "
            f"{start.directory}, from whose weights this stage starts"
        )
    if spec.lora and onto.base:
        raise ValueError(
            f"lora is {spec.lora}, and onto {spec.onto!r} has adapters of its own; expected a "
            "network without, or lora=0"
        )
    classes = onto.network_spec.spec.classes("label")
    if method.keep_weight and not max(method.keep_labels) < classes:
        raise ValueError(
            f"keep_labels are {method.keep_labels}, and onto {spec.onto!r} has {classes} classes; "
            "expected labels of its classes"
        )
    return onto


def _check_kept(spec: ConfigDict, method: Method) -> None:
    """Raises ValueError for a stage that keeps images without all that this needs."""
    given = method.keep_weight, method.keep_labels
    fits = all(given) and spec.onto and spec.lora and not method.needs_teacher
    if any(given) and not fits:
        raise ValueError(
            f"keep_weight is {given[0]:g}, keep_labels {given[1]}, lora {spec.lora} and onto "
            f"{spec.onto!r}: images of `onto` are kept by adapters that learn from data; set all "
            "four, with method 'diffusion', or neither keep_weight nor keep_labels"
        )
