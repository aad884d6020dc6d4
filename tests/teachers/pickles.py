"""Writer of pickles that name code without importing it, and of PyTorch's formats.

What an attacker would send, and networks without PyTorch; test_unpickle.py reads files of
PyTorch's own beside them.
"""

import struct
import zipfile

import numpy as np


class Global:
    """A name MODULE.NAME in a pickle."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """The result of MODULE.NAME(*arguments), a call that loading the pickle makes."""

    def __init__(self, module, name, *arguments):
        self.function, self.arguments = Global(module, name), arguments


class Stored:
    """A reference to data outside the pickle, by id."""

    def __init__(self, *pid):
        self.pid = pid


class Twice:
    """A list that has one value twice."""

    def __init__(self, value):
        self.value = value


def dump(value):
    """Returns the pickle in protocol 4."""
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


MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
FLOAT = Global("torch", "FloatStorage")


def tensor(storage, shape, strides=None, offset=0):
    strides = strides or tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    arguments = (storage, offset, shape, strides, False, {})
    return Call("torch._utils", "_rebuild_tensor_v2", *arguments)


def archive(folder, entries, **options):
    """Writes a file like torch.save's, with these entries."""
    path = folder / "model.pt"
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, content in entries.items():
            file.writestr(f"model/{name}", content)
    return path


def legacy(value, keys=(), data=b""):
    """Returns the bytes of a file like torch.save's before 1.6."""
    parts = (MAGIC, VERSION, {"little_endian": True}, value, list(keys))
    return b"".join(map(dump, parts)) + data


def module(parameters, modules=None, class_name="Net", **attributes):
    """Returns a network like those of torch_utils.persistence."""
    state = {
        "_parameters": parameters,
        "_buffers": {},
        "_modules": modules or {},
        "_init_args": (),
        "_init_kwargs": {},
        **attributes,
    }
    source = "raise SystemExit('the source in a pickle was executed')"
    meta = {"type": "class", "module_src": source, "class_name": class_name, "state": state}
    return Call("torch_utils.persistence", "_reconstruct_persistent_obj", meta)


def stored_bytes(content):
    return Call("torch.storage", "_load_from_bytes", content)


def network(state, class_name="Net", **attributes):
    """Returns a network with the arrays {"a.b.weight": array}, in modules within modules."""
    parameters, inside = {}, {}
    for name, array in state.items():
        first, _, rest = name.partition(".")
        if rest:
            inside.setdefault(first, {})[rest] = array
        else:
            data = struct.pack("<q", array.size) + array.astype("<f4").tobytes()
            content = legacy(Stored("storage", FLOAT, "7", "cpu", array.size, False), ["7"], data)
            parameters[name] = tensor(stored_bytes(content), array.shape)
    modules = {name: network(arrays) for name, arrays in inside.items()}
    return module(parameters, modules, class_name, **attributes)
