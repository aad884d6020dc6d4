"""Writes pickles that name anything, without importing it: what an attacker would send."""

import struct


class Global:
    """MODULE.NAME, as a pickle names it."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """What MODULE.NAME(*arguments) returns; loading the pickle makes the call."""

    def __init__(self, module, name, *arguments):
        self.function, self.arguments = Global(module, name), arguments


class Stored:
    """What lies elsewhere, under an id."""

    def __init__(self, *pid):
        self.pid = pid


class Twice:
    """A list of one value, two times the same one."""

    def __init__(self, value):
        self.value = value


def dump(value):
    """The pickle, in protocol 4."""
    return b"\x80\x04" + opcodes(value) + b"."


def opcodes(value):
    return OPCODES[type(value)](value)


def joined(values):
    return b"".join(map(opcodes, values))


def with_size(opcode, content):
    return opcode + struct.pack("<I", len(content)) + content


OPCODES = {
    Global: lambda value: f"c{value.module}\n{value.name}\n".encode(),
    Call: lambda value: opcodes(value.function) + opcodes(value.arguments) + b"R",
    Stored: lambda value: opcodes(value.pid) + b"Q",
    Twice: lambda value: b"](" + opcodes(value.value) + b"2e",
    tuple: lambda value: b"(" + joined(value) + b"t",
    list: lambda value: b"](" + joined(value) + b"e",
    dict: lambda value: b"}(" + joined(part for pair in value.items() for part in pair) + b"u",
    str: lambda value: with_size(b"X", value.encode()),
    bytes: lambda value: with_size(b"B", value),
    bool: lambda value: b"\x88" if value else b"\x89",
    int: lambda value: b"\x8a\x10" + value.to_bytes(16, "little", signed=True),
}
