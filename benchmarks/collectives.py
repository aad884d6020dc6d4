"""What the devices of a compiled program send each other, read from its text (XLA's HLO)."""

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

# Bytes that a device of n sends in the ring algorithm, where `size` bytes enter on each.
RING = {
    "all-gather": lambda size, n: (n - 1) * size,
    "reduce-scatter": lambda size, n: (n - 1) * size // n,
    "all-reduce": lambda size, n: 2 * (n - 1) * size // n,
    "all-to-all": lambda size, n: (n - 1) * size // n,
    "collective-permute": lambda size, n: size,
}
BYTES = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16}  # Of others their name says the bits.
SAME = {"bitcast", "convert", "copy", "optimization-barrier", "reshape", "transpose"}

_HEAD = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (.*)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{(.*?)\}")


class Collective(NamedTuple):
    """One array of an exchange between devices.

    Attributes:
      kind: a key of RING.
      array: what enters on one device: f32[192,384].
      devices: that exchange it.
      times: that it runs in one call of the program.
      sliced: whether it is an all-reduce of which every device uses its own part alone. It is a
        reduce-scatter to compilers that look for one; XLA's for CPUs does not.
      source: the operation of the JAX program.
    """

    kind: str
    array: str
    devices: int
    times: int
    sliced: bool
    source: str

    @property
    def size(self) -> int:
        """Bytes that enter on one device, each time."""
        return _size(self.array)

    @property
    def sent(self) -> int:
        """Bytes that a device sends in one call of the program, by the ring algorithm."""
        return self.times * RING[self.kind](self.size, self.devices)

    @property
    def elements(self) -> float:
        """Elements sent, where a sliced all-reduce were the reduce-scatter that it amounts to."""
        kind = "reduce-scatter" if self.sliced else self.kind
        return self.times * RING[kind](self.size, self.devices) / _width(self.array)


def collectives(text: str) -> list[Collective]:
    """The exchanges of a compiled program, with those in loops and in asynchronous operations.

    Args:
      text: of jax.stages.Compiled.as_text().

    Raises:
      ValueError: for an exchange in a loop whose length the text does not say.
    """
    program, seen, found = _parse(text), set(), []
    for name, times in _runs(program).items():
        for instruction in program.inside[name]:
            part = _part(instruction)
            if part is None or part not in seen:
                found += _exchanges(program, instruction, times)
            seen.add(part)
    return found


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str  # What stands behind the operands.
    computation: str
    root: bool  # Whether it is what the computation returns.

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Computations that it runs, once or in a loop."""
        found = _CALLED.findall(self.rest)
        for names in _BRANCHES.findall(self.rest):
            found += re.findall(r"[\w.-]+", names)
        return tuple(found)


class _Program(NamedTuple):
    """Instructions by computation, by name, and by what they use; names are the program's own."""

    entry: str
    devices: int
    inside: dict[str, list[_Instruction]]
    named: dict[str, _Instruction]
    users: dict[str, list[_Instruction]]


def _parse(text: str) -> _Program:
    match = re.search(r"num_partitions=(\d+)", text)
    program = _Program("", int(match[1]) if match else 1, defaultdict(list), {}, defaultdict(list))
    here = ""
    for line in text.splitlines():
        head, found = _HEAD.match(line), _LINE.match(line)
        if head:
            here = head[1]
            if line.startswith("ENTRY"):
                program = program._replace(entry=here)
        elif found:
            instruction = _instruction(found, here)
            program.inside[here].append(instruction)
            program.named[instruction.name] = instruction
            for operand in set(instruction.operands):
                program.users[operand].append(instruction)
    return program


def _instruction(line: re.Match, computation: str) -> _Instruction:
    root, name, text = line.groups()
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    shape, text = text[: end + 1], text[end + 1 :].lstrip()
    opcode, _, _ = text.partition("(")
    end = _closing(text, len(opcode))
    operands = tuple(re.findall(r"%([\w.-]+)", text[len(opcode) : end]))
    if opcode in ("parameter", "constant"):
        operands = (text[len(opcode) + 1 : end],)  # Its number.
    return _Instruction(name, shape, opcode, operands, text[end + 1 :], computation, bool(root))


def _closing(text: str, start: int) -> int:
    """Where the parenthesis ends that opens at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return at
    return len(text)


def _part(instruction: _Instruction) -> tuple[str, ...] | None:
    """What the parts of one exchange share that XLA for TPUs runs beside other work.

    Each part has the text of the whole. A channel alone does not say that: sums share theirs.
    """
    if "async_collective_fusion_config" not in instruction.rest:
        return None
    return (instruction.opcode, *re.findall(r"channel_id=\d+", instruction.rest))


def _runs(program: _Program) -> dict[str, int]:
    """How often each computation runs in one call of the program."""
    runs: dict[str, int] = defaultdict(int)
    todo = [(program.entry, 1)]
    while todo:
        name, times = todo.pop()
        runs[name] += times
        for instruction in program.inside[name]:
            called = [each for each in instruction.called if each in program.inside]
            rounds = _rounds(program, instruction) if instruction.opcode == "while" else 1
            if rounds is None and any(_sends(program, each) for each in called):
                raise ValueError(
                    f"the loop {instruction.name} exchanges data and its length is not known; "
                    "expected known_trip_count, or a count from a constant up to a constant"
                )
            todo += [(each, times * (rounds or 1)) for each in called]
    return runs


def _sends(program: _Program, name: str) -> bool:
    """Whether a computation, or one that it runs, exchanges data."""
    return any(
        each.opcode.removesuffix("-start") in RING
        or any(_sends(program, inner) for inner in each.called if inner in program.inside)
        for each in program.inside[name]
    )


def _rounds(program: _Program, loop: _Instruction) -> int | None:
    """Of a loop, None where they are not known."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    parts = dict(re.findall(r"\b(condition|body)=%?([\w.-]+)", loop.rest))
    test, after = (_root(program, parts[part]) for part in ("condition", "body"))
    if test.opcode != "compare" or "direction=LT" not in test.rest:
        return None
    counter = program.named.get(test.operands[0])
    index = re.search(r"index=(\d+)", counter.rest) if counter else None
    before = program.named[loop.operands[0]]
    if not index or (before.opcode, after.opcode) != ("tuple", "tuple"):
        return None
    place = int(index[1])
    added = program.named[after.operands[place]]
    first, last = (_constant(program, x) for x in (before.operands[place], test.operands[1]))
    step = _constant(program, added.operands[-1]) if added.opcode == "add" else None
    return None if None in (first, last, step) or step < 1 else max(0, -((first - last) // step))


def _root(program: _Program, name: str) -> _Instruction:
    return next(each for each in program.inside[name] if each.root)


def _constant(program: _Program, name: str) -> int | None:
    """The whole number that a value is, None where it is none or has to be computed."""
    found = program.named[name]
    while found.opcode in SAME:
        found = program.named[found.operands[0]]
    whole = found.opcode == "constant" and re.fullmatch(r"-?\d+", found.operands[0])
    return int(found.operands[0]) if whole else None


def _exchanges(program: _Program, instruction: _Instruction, times: int) -> Iterator[Collective]:
    kind = instruction.opcode.removesuffix("-start")
    if kind not in RING:
        return
    # So XLA's compiler for TPUs names the fusion of an all-reduce with the slice of each device.
    if kind == "all-reduce" and instruction.computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    found = re.search(r'op_name="(.*?)"', instruction.rest)
    source = found[1] if found else ""
    devices = _group(instruction.rest, program.devices)
    for i, operand in enumerate(instruction.operands):
        results = _results(program, instruction, i)
        sliced = kind == "all-reduce" and _only_sliced(program, results)
        for array in _ARRAY.finditer(program.named[operand].shape):
            yield Collective(kind, array[0], devices, times, sliced, source)


def _group(rest: str, everyone: int) -> int:
    """How many devices exchange with each other."""
    mesh = re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", rest)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", rest)
    if iota:
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    return listed[1].count(",") + 1 if listed else everyone


def _results(program: _Program, instruction: _Instruction, index: int) -> list[str]:
    """Names of what comes out for operand `index`."""
    if not instruction.shape.startswith("("):
        return [instruction.name]
    users = program.users[instruction.name]
    return [user.name for user in users if f"index={index}" in user.rest.split(", ")]


def _only_sliced(program: _Program, names: list[str], outer: str = "") -> bool:
    """Whether all that is used of some values is a slice of each whose place is computed.

    `outer` is the operation that they are computed within.
    """
    for name in names:
        users = program.users[name]
        if program.named[name].root and not (outer and _only_sliced(program, [outer])):
            return False
        if not (users or program.named[name].root):
            return False
        if not all(_slices(program, user, name, outer) for user in users):
            return False
    return bool(names)


def _slices(program: _Program, user: _Instruction, name: str, outer: str) -> bool:
    if user.opcode == "dynamic-slice":
        return user.operands[0] == name
    if user.opcode in SAME:
        return _only_sliced(program, [user.name], outer)
    if user.opcode not in ("fusion", "call"):
        return False
    numbers = {str(i) for i, operand in enumerate(user.operands) if operand == name}
    inner = (each for each in program.inside[user.called[0]] if each.opcode == "parameter")
    mine = [each.name for each in inner if each.operands[0] in numbers]
    return _only_sliced(program, mine, user.name)


def _size(array: str) -> int:
    """Bytes of an array."""
    dims = _ARRAY.match(array)[2]
    return _width(array) * math.prod(int(length) for length in dims.split(",") if length)


def _width(array: str) -> int:
    """Bytes of an element."""
    dtype = _ARRAY.match(array)[1]
    bits = re.search(r"\d+", dtype)
    return BYTES.get(dtype) or max(int(bits[0]) // 8, 1)
