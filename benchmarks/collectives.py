"""Reads from a compiled program's text (XLA's HLO) which data its devices send each other."""

import math
import re
from typing import NamedTuple

# Bytes that each of n devices sends in the ring algorithm, for an input of `size` bytes on each.
RING = {
    "all-gather": lambda size, n: (n - 1) * size,
    "reduce-scatter": lambda size, n: (n - 1) * size // n,
    "all-reduce": lambda size, n: 2 * (n - 1) * size // n,
    "all-to-all": lambda size, n: (n - 1) * size // n,
    "collective-permute": lambda size, n: size,
}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \([^\n]*\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_LINE = re.compile(r"^ +(ROOT )?%?([\w.-]+) = (.*)", re.MULTILINE)
_NAME = re.compile(r"%([\w.-]+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf" ({'|'.join(RING)})(?:-start)?\((.*?)\)(.*)")
_CALLED = re.compile(r"\b(?:calls|to_apply|condition|body|branch_computations)=(\{.*?\}|%?[\w.-]+)")


class Collective(NamedTuple):
    """An array that devices exchange in a collective operation.

    Attributes:
      kind: a key of RING.
      array: input on one device, such as f32[192,384].
      devices: number of devices in the exchange.
      times: number of exchanges in one call of the program.
    """

    kind: str
    array: str
    devices: int
    times: int

    @property
    def elements(self) -> int:
        """Number of elements of the input on one device."""
        return math.prod(int(n) for n in _ARRAY.match(self.array)[2].split(",") if n)

    @property
    def sent(self) -> int:
        """Bytes that a device sends in one call of the program, by the ring algorithm."""
        bits = re.search(r"\d+", _ARRAY.match(self.array)[1])  # A pred is a byte.
        width = max(int(bits[0]) // 8, 1) if bits else 1
        return self.times * RING[self.kind](self.elements * width, self.devices)


def collectives(text: str) -> list[Collective]:
    """Returns the exchanges of a compiled program, also in loops and asynchronous operations.

    Args:
      text: result of jax.stages.Compiled.as_text().

    Raises:
      ValueError: for an exchange in a loop of unknown length.
    """
    partitions = re.search(r"num_partitions=(\d+)", text)
    inside, named = {}, {}  # Names by computation, and texts of instructions and computations.
    for entry, computation, body in _COMPUTATION.findall(text):
        lines = _LINE.findall(body)
        inside[entry or computation] = [name for _, name, _ in lines]
        named.update((name, line) for _, name, line in lines)
        named.update((f"root of {computation}", line) for root, _, line in lines if root)
    seen: set[tuple[str, ...]] = set()

    def arrays(computation: str, kind: str, operands: str, rest: str) -> list[Collective]:
        # XLA for TPUs overlaps an exchange with other work in parts, each of which has the text of
        # the whole exchange. The channel does not identify the parts, because sums share channels.
        part = (kind, *re.findall(r"channel_id=\d+", rest))
        in_parts = "async_collective_fusion_config" in rest
        if in_parts and part in seen:
            return []
        seen.update([part] if in_parts else [])
        # This is its name for the fusion of an all-reduce with the slice of each device.
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        devices = _group(rest, int(partitions[1]) if partitions else 1)
        entering = (_ARRAY.match(named[operand])[0] for operand in _NAME.findall(operands))
        return [Collective(kind, array, devices, 1) for array in entering]

    def exchanges(computation: str) -> list[Collective]:
        found = []
        for name in inside.get(computation, ()):
            called = " ".join(_CALLED.findall(named[name]))
            within = [each for x in re.findall(r"[\w.-]+", called) for each in exchanges(x)]
            rounds = _rounds(named, name) if within and " while(" in named[name] else 1
            found += [each._replace(times=rounds * each.times) for each in within]
            if match := _COLLECTIVE.search(named[name]):
                found += arrays(computation, *match.groups())
        return found

    return exchanges("ENTRY ")


def _group(rest: str, everyone: int) -> int:
    """Returns the number of devices in an exchange."""
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    return listed[1].count(",") + 1 if listed else everyone


def _rounds(named: dict[str, str], loop: str) -> int:
    """Returns the rounds of a loop, from its text or, for TPUs, from its constant bounds."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', named[loop]):
        return int(known[1])

    def operands(line: str, opcode: str = r"[\w-]+") -> list[str]:
        return _NAME.findall(re.search(rf" {opcode}\((.*?)\)", line)[1])

    def constant(name: str) -> int:
        while not (found := re.search(r" constant\((-?\d+)\)", named[name])):
            (name,) = operands(named[name])  # A copy or a conversion.
        return int(found[1])

    try:
        parts = dict(re.findall(r"\b(condition|body)=%?([\w.-]+)", named[loop]))
        test, after = (named[f"root of {parts[part]}"] for part in ("condition", "body"))
        count, end = operands(test[: test.index(", direction=LT")], "compare")
        place = int(re.search(r"index=(\d+)", named[count])[1])
        first = operands(named[operands(named[loop], "while")[0]], "tuple")[place]
        step = operands(named[operands(after, "tuple")[place]], "add")[1]
        return max(0, -((constant(first) - constant(end)) // constant(step)))
    except (IndexError, KeyError, TypeError, ValueError, ZeroDivisionError):
        raise ValueError(
            f"the loop {loop} exchanges data and its length is not known; expected "
            "known_trip_count, or a count from a constant up to a constant"
        ) from None
