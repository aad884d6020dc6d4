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
    return onto
