"""Files that somebody may send: name -> (format, content), made by short functions.

Pickles that would execute, hash, copy or allocate without bound; archives, arrays, descriptions,
msgpack and safetensors whose numbers or names are forged.
"""

import io
import json
import math
import pickle
import struct
import zipfile

import msgpack
import numpy as np

from tests.teachers import pickles
from tests.teachers.pickles import FLOAT, Call, Stored, dump, legacy, module, opcodes, tensor


class Raw:
    """Opcodes in the place of a value."""

    def __init__(self, content):
        self.content = content


pickles.OPCODES[Raw] = lambda value: value.content


def text(content):
    return pickles.with_size(b"X", content.encode())


def laugh(count=40):
    """Returns opcodes of a tuple of two tuples of two tuples ..., all of them the same object."""
    doubled = (b"q%ch%c\x86" % (i, i) for i in range(count))
    return b")" + b"".join(doubled)


LAUGH = Raw(laugh())
COMMAND = "touch trap"
WEIGHT = "output_blocks.0.0.in_layers.2.weight"


def ema(body):
    """Returns a pickle of {"ema": the object that opcodes make}."""
    return b"\x80\x04}" + text("ema") + body + b"s."


def described(kwargs=None, parameters=None, **attributes):
    """Returns a pickle of EDM with these arguments of the network."""
    network = module(parameters or {}, None, "EDMPrecond", _init_kwargs=kwargs or {}, **attributes)
    return dump({"ema": network})


def zipped(entries, **options):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in entries.items():
            archive.writestr(f"model/{name}", content)
    return file.getvalue()


def storage(size=4, key="0"):
    return Stored("storage", FLOAT, key, "cpu", size)


def one(value, size=16):
    """Returns an archive of a state dict with one value and one storage."""
    return zipped({"data.pkl": dump({"a": value}), "data/0": bytes(size)})


def patched(content, signature, place, value):
    """Returns an archive with bytes changed after the last occurrence of a signature."""
    begin = content.rfind(signature) + place
    return content[:begin] + value + content[begin + len(value) :]


def glob(name):
    return (
        b"c" + name.rpartition(".")[0].encode() + b"\n" + name.rpartition(".")[2].encode() + b"\n"
    )


EXECUTING = {
    "REDUCE": glob("os.system") + text(COMMAND) + b"\x85R",
    "GLOBAL eval": glob("builtins.eval") + text("open('trap', 'w')") + b"\x85R",
    "STACK_GLOBAL": text("posix") + text("system") + b"\x93" + text(COMMAND) + b"\x85R",
    "INST": b"(" + text(COMMAND) + b"ios\nsystem\n",
    "OBJ": b"(" + glob("os.system") + text(COMMAND) + b"o",
    "NEWOBJ": glob("os.system") + text(COMMAND) + b"\x85\x81",
    "NEWOBJ_EX": glob("os.system") + text(COMMAND) + b"\x85}\x92",
    "BUILD of a class": glob("collections.OrderedDict")
    + b"}"
    + text("__setstate__")
    + glob("os.system")
    + b"sb",
    "dotted through an allowed name": text("collections")
    + text("OrderedDict.__init__.__globals__")
    + b"\x93",
    "dotted module": text("numpy") + text("dtype.__reduce__") + b"\x93",
    "numpy object array": glob("numpy.core.multiarray._reconstruct")
    + b"("
    + glob("numpy.ndarray")
    + b"K\x00\x85C\x01btR(K\x01K\x01\x85"
    + glob("numpy.dtype")
    + b"("
    + text("O8")
    + b"tR\x89]"
    + glob("os.system")
    + b"atb",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x00",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "getattr": glob("builtins.getattr") + glob("os.path") + text("os") + b"\x86R",
    "partial": glob("functools.partial") + glob("os.system") + text(COMMAND) + b"\x86R)R",
    "torch.load": glob("torch.load") + text("x") + b"\x85R",
    "runpy": glob("runpy.run_path") + text("/tmp/x.py") + b"\x85R",
    "webbrowser": glob("webbrowser.open") + text("http://x") + b"\x85R",
    "newline in a name": text("os\n") + text("system") + b"\x93",
    "a long name": text("x" * 10**6) + text("y") + b"\x93",
    "escapes in a name": text("\x1b[2J") + text("\x00\n") + b"\x93",
}
MALFORMED = {
    "PERSID": b"Pstorage\n",
    "BINPERSID of a number": b"K\x01Q",
    "BINPERSID of a short tuple": text("storage") + b"\x85Q",
    "BINPERSID with a list for a key": opcodes(("storage", FLOAT, [1], "cpu", 4)) + b"Q",
    "BINPERSID of a negative size": opcodes(("storage", FLOAT, "0", "cpu", -4)) + b"Q",
    "BINPERSID of 2^80": opcodes(("storage", FLOAT, "0", "cpu", 2**80)) + b"Q",
    "buffers": b"\x97\x98",
    "BYTEARRAY8 of a terabyte": b"\x96" + struct.pack("<Q", 1 << 40),
    "BINUNICODE8 of an exabyte": b"\x8d" + struct.pack("<Q", 1 << 60),
    "BINUNICODE of 4 GB": b"X\xff\xff\xff\xff",
    "BINBYTES of 4 GB": b"B\xff\xff\xff\xff",
    "BINBYTES8 of an exabyte": b"\x8e" + struct.pack("<Q", 1 << 60),
    "BINSTRING negative": b"T" + struct.pack("<i", -1),
    "LONG4 of 2 GB": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "LONG4 negative": b"\x8b" + struct.pack("<i", -5),
    "FRAME of 2^62": b"\x95" + struct.pack("<Q", 1 << 62) + b"N",
    "PUT -1": b"Np-1\n",
    "PUT of 4000 digits": b"Np" + b"9" * 4000 + b"\n",
    "LONG_BINPUT 2^32": b"Nr\xff\xff\xff\xff",
    "LONG of 10^5 digits": b"L" + b"9" * 10**5 + b"L\n",
    "FLOAT of words": b"F" + b"x" * 4000 + b"\n",
    "GET": b"h\x05",
    "STRING": b"S'\\x41'\n",
    "UNICODE": b"V\\ud800\n",
    "APPEND to a class": glob("collections.OrderedDict") + b"(K\x01e",
    "SETITEMS to a class": glob("collections.OrderedDict") + b"(K\x01K\x02u",
    "ADDITEMS to a list": b"](K\x01\x90",
    "BUILD of a list": b"]}" + text("x") + b"K\x01sb",
    "REDUCE of a string": text("x") + b")R",
    "REDUCE with a number for arguments": glob("numpy.dtype") + b"K\x01R",
    "POP of nothing": b"0000",
    "PROTO 255": b"\x80\xff",
    "nested lists": b"]" * 100_000 + b"a" * 99_999,
}
GROWING = {
    "nested tuples": b")" + b"\x85" * 400_000,
    "key": b"}" + laugh() + b"Ns",
    "key of SETITEMS": b"}(" + laugh() + b"Nu",
    "key of DICT": b"(" + laugh() + b"Nd",
    "in a set": b"\x8f(" + laugh() + b"\x90",
    "in a frozenset": b"((" + laugh() + b"\x91",
    "key in the pairs of an OrderedDict": glob("collections.OrderedDict")
    + b"]("
    + laugh()
    + b"N\x86e\x85R",
    "arguments of NEWOBJ": glob("dnnlib.util.EasyDict") + laugh() + b"\x81",
    "kind of an id": b"(" + laugh() + opcodes(FLOAT) + text("0") + text("cpu") + b"K\x04tQ",
    "type of an id": b"(" + text("storage") + laugh() + text("0") + text("cpu") + b"K\x04tQ",
    "key of an id": b"(" + text("storage") + opcodes(FLOAT) + laugh() + text("cpu") + b"K\x04tQ",
    "size of an id": b"("
    + text("storage")
    + opcodes(FLOAT)
    + text("0")
    + text("cpu")
    + laugh()
    + b"tQ",
    "an id": laugh() + b"Q",
    "calls that copy arguments": b"("
    + b"N" * 200_000
    + b"tq\x00"
    + (glob("numpy.dtype") + b"q\x01" + b"h\x01h\x00R0" * 20_000),
    "empty sets": b"\x8f" * 400_000,
    "empty dicts": b"}" * 400_000,
    "marks": b"(" * 400_000,
    "entries of the memo": b"N" + b"\x94" * 400_000,
    "names": glob("numpy.dtype") * 100_000,
    "forbidden names": (glob("numpy.dtype") + b"0") * 100_000 + glob("os.system"),
    "large numbers as keys": b"\x8b"
    + struct.pack("<i", 10**6)
    + b"\x7f" * 10**6
    + b"q\x000}"
    + b"h\x00Ns" * 50_000,
    "a set that is shared": b"]\x8f("
    + b"".join(b"K%cK%c\x86" % (i, i) for i in range(250))
    + b"\x90q\x00"
    + b"h\x00a" * 100_000,
}


def inside(kind, count=40):
    """Returns pickles of networks that hold a doubled tuple, or many parts, where it is read."""
    half = tensor(pickles.stored_bytes(legacy(storage(1))), (1,))
    parameter = Raw(b"")
    if kind == "parameter of parameters":
        names = glob("torch._utils._rebuild_parameter") * 20_000
        parameter = Raw(names + b"N" + b"\x85R" * 20_000)
    chains = {
        "class name": lambda: dump({"ema": module({}, None, LAUGH)}),
        "argument": lambda: described({"a": LAUGH}),
        "name of an argument": lambda: described({LAUGH: 1}),
        "unnamed arguments": lambda: described(_init_args=LAUGH),
        "name of a parameter": lambda: described({}, {LAUGH: half}),
        "shape": lambda: described({}, {"w": tensor(pickles.stored_bytes(b""), (1,), LAUGH)}),
        "storage": lambda: described({}, {"w": tensor(LAUGH, (1,))}),
        "bytes of a storage": lambda: described(
            {}, {"w": tensor(pickles.stored_bytes(LAUGH), (1,))}
        ),
        "keys of storages": lambda: described(
            {}, {"w": tensor(pickles.stored_bytes(legacy(1, [LAUGH])), (1,))}
        ),
        "byte order": lambda: described(
            {},
            {
                "w": tensor(
                    pickles.stored_bytes(
                        b"".join(map(dump, (0x1950A86A20F9469CFC6C, 1001, {LAUGH: True}, 1, [])))
                    ),
                    (1,),
                )
            },
        ),
        "magic": lambda: described({}, {"w": tensor(pickles.stored_bytes(dump(LAUGH)), (1,))}),
        "buffers that are not stored": lambda: described(
            {}, {"w": half}, _non_persistent_buffers_set=LAUGH
        ),
        "dtype of a number": lambda: described(
            {"a": Call("numpy.core.multiarray", "scalar", Call("numpy", "dtype", LAUGH), b"1234")}
        ),
        "number": lambda: described(
            {"a": Call("numpy.core.multiarray", "scalar", Call("numpy", "dtype", "f4"), LAUGH)}
        ),
        "parameter of parameters": lambda: described({}, {"w": parameter}),
        "module in itself": itself,
        "modules doubled": lambda: doubled(count),
        "modules in modules": lambda: nested(2000, "a"),
        "names of 10^5 letters": lambda: nested(20, "a" * 10**5),
    }
    return chains[kind]()


INSIDE = (
    "class name", "argument", "name of an argument", "unnamed arguments", "name of a parameter",
    "shape", "storage", "bytes of a storage", "keys of storages", "byte order", "magic",
    "buffers that are not stored", "dtype of a number", "number", "parameter of parameters",
    "module in itself", "modules doubled", "modules in modules", "names of 10^5 letters",
)  # fmt: skip


def persisted(modules):
    """Returns opcodes of a network with submodules, given as opcodes of a dict."""
    state = b"}" + b"".join(text(name) + b"}s" for name in ("_parameters", "_buffers"))
    state += text("_init_kwargs") + b"}s" + text("_init_args") + b")s" + text("_modules") + modules
    meta = b"}" + text("class_name") + text("EDMPrecond") + b"s" + text("state") + state + b"ss"
    return glob("torch_utils.persistence._reconstruct_persistent_obj") + meta + b"\x85R"


def itself():
    """Returns a network that is its own submodule."""
    return ema(persisted(b"}q\x00") + b"q\x01h\x00" + text("a") + b"h\x01s0")


def nested(count, name):
    """Returns a network of one submodule of that name, and so on."""
    inner = persisted(b"}")
    for _ in range(count):
        inner = persisted(b"}" + text(name) + inner + b"s")
    return ema(inner)


def doubled(count):
    """Returns a network of two submodules, which are the same, and so on."""
    inner = persisted(b"}")
    for i in range(count):
        inner += b"q%c0" % i + persisted(b"}" + text("a") + b"h%cs" % i + text("b") + b"h%cs" % i)
    return ema(inner)


def states():
    """Yields archives of torch.save, and what they must not make of a few bytes."""
    huge = 2**62
    wrong = {
        "offset": tensor(storage(), (2,), (1,), 3),
        "offset of 2^62": tensor(storage(), (1,), (1,), huge),
        "strides of 2^62": tensor(storage(), (2, 2), (huge, huge)),
        "product of 2^64": tensor(storage(), (2**32, 2**32), (0, 0)),
        "nothing with large strides": tensor(storage(), (0, huge), (huge, 1)),
        "nothing behind the end": tensor(storage(), (0,), (1,), huge),
        "a float for a side": tensor(storage(), Raw(b"G" + struct.pack(">d", 2.0) + b"\x85"), (1,)),
        "NaN for a side": tensor(
            storage(), Raw(b"G" + struct.pack(">d", math.nan) + b"\x85"), (1,)
        ),
        "a bool for a side": tensor(storage(), Raw(b"\x88\x85"), (1,)),
        "a text for a shape": tensor(storage(), Raw(text("22")), Raw(text("11"))),
        "a number for a shape": tensor(storage(), Raw(b"K\x02"), Raw(b"K\x01")),
        "negative strides": tensor(storage(), (2,), (-1,), 1),
        "300 axes": tensor(storage(1), (1,) * 300),
        "negative size": tensor(storage(-4), (1,)),
        "size of 2^61": tensor(storage(2**61), (1,)),
        "few arguments": Call("torch._utils", "_rebuild_tensor_v2", storage()),
        "parameter of a number": Call("torch._utils", "_rebuild_parameter", 3),
        "key with ..": tensor(storage(4, "../../x"), (4,)),
        "key that is a number": tensor(storage(4, 7), (4,)),
        "key": {LAUGH: 1},
        "a deep dict": Raw(b"}" * 5000 + (text("a") + b"Ns") + b""),
    }
    for name, value in wrong.items():
        yield f"tensor: {name}", one(value)
    many = {f"k{i}": tensor(storage(), (4,)) for i in range(3000)}
    yield "3,000 arrays of one storage", zipped({"data.pkl": dump(many), "data/0": bytes(16)})
    empty = {f"k{i}": tensor(storage(0), (0,)) for i in range(3000)}
    yield "3,000 empty arrays", zipped({"data.pkl": dump(empty), "data/0": b""})
    for count in (20, 70, 900):
        yield f"{count} blocks of one storage", blocks(count)
    for name, shape in {
        "1 axis": (4,),
        "no channels": (4, 0, 1, 1),
        "6 axes": (1, 1, 1, 1, 1, 1),
        "a million image channels": (4, 10**6, 1, 1),
    }.items():
        yield f"arrays: {name}", blocks(2, shape)
    yield "names: escapes", one_name("\x1b[2J\x00\nerror: fake")
    yield "names: 10^6 letters", one_name("x" * 10**6)
    yield "names: a number", one_name(7)


def one_name(name):
    return zipped({"data.pkl": dump({name: tensor(storage(), (4,))}), "data/0": bytes(16)})


def blocks(count, shape=None, width=32):
    """Returns a state dict of ADM whose arrays all are views of one storage."""

    def part(*own):
        return tensor(storage(36 * width * width), shape or own)

    state = {
        "input_blocks.0.0.weight": part(width, 3, 3, 3),
        "time_embed.0.weight": part(4 * width, width),
        "out.2.weight": part(3, width, 3, 3),
        WEIGHT: part(width, 2 * width, 3, 3),
    }
    for i in range(1, count + 1):
        begin = f"input_blocks.{i}.0."
        state[f"{begin}in_layers.2.weight"] = part(width, width, 3, 3)
        state[f"{begin}out_layers.3.weight"] = part(width, width, 3, 3)
        state[f"{begin}emb_layers.1.weight"] = part(2 * width, 4 * width)
    content = bytes(4 * 36 * width * width)
    return zipped({"data.pkl": dump(state), "data/0": content})


def archives():
    """Yields zip archives that are forged as archives."""
    plain = {"data.pkl": dump({"a": 1}), "data/0": bytes(16)}
    good = zipped(plain)
    local, central, end = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
    yield "traversal", zipped({"../../../../tmp/x": b"x", **plain})
    twice = zipped({**plain, "data.pk1": dump({})}).replace(b"data.pk1", b"data.pkl")
    yield "two data.pkl", twice
    yield "two folders", zipped({"a/data.pkl": dump({}), "data.pkl": dump({})})
    yield "no data.pkl", zipped({"x": b"1"})
    yield "a folder data.pkl", zipped({"data.pkl/": b""})
    yield "encrypted", patched(patched(good, local, 6, b"\1"), central, 8, b"\1")
    yield "lying sizes", patched(good, central, 20, b"\xf0\xff\xff\xff" * 2)
    yield "lying offset", patched(good, central, 42, b"\xf0\xff\xff\x7f")
    yield "lying name", patched(good, local, 26, b"\xff\xff")
    yield "lying extra", patched(good, local, 28, b"\xff\xff")
    yield "lying list", patched(good, end, 12, b"\xff\xff\xff\x7f")
    yield "lying start", patched(good, end, 16, b"\xff\xff\xff\x7f")
    yield "another method", patched(good, central, 10, b"\x0e\0")
    yield "a bomb", zipped({**plain, "data/0": bytes(1 << 24)}, compression=zipfile.ZIP_DEFLATED)
    yield "wrong checksum", patched(good, central, 16, b"\1\2\3\4")
    yield "bytes before it", b"x" * 1000 + good
    yield "comment", good[:-2] + b"\x04\0abcd"
    yield "byte order of 10^6", zipped({**plain, "byteorder": b"big" * 10**6})
    yield "one entry many times", overlapping(good, 2000)
    yield "zip64 that lies", patched(good, end, 8, b"\xff" * 12)
    yield "only an end", good[good.rfind(end) :]


def overlapping(good, count):
    """Returns an archive whose list names one entry `count` times."""
    begin, end = good.find(b"PK\x01\x02"), good.rfind(b"PK\x05\x06")
    first = good[begin : good.find(b"PK\x01\x02", begin + 4)]
    listing = good[begin:end] + first * count
    tail = bytearray(good[end:])
    tail[8:16] = struct.pack("<HHI", count + 2, count + 2, len(listing))
    return good[:begin] + listing + bytes(tail)


def array(shape, dtype="float32", data=b"", code=1):
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, data)))


CONV = {"conv_in": {"kernel": array([3, 3, 3, 256], "float32", bytes(4 * 27 * 256))}}


def training_states():
    """Yields msgpack files of google-research's kind."""
    leaves = {
        "extension 99": msgpack.ExtType(99, b"\x93\xc0\xc0\xc0"),
        "extension in an extension": msgpack.ExtType(1, msgpack.packb(array([1]))),
        "complex": array([], "complex64", bytes(8), 2),
        "objects": array([1], "O", bytes(8)),
        "letters for a shape": array(["a"]),
        "negative shape": array([-1, -1], "float32", bytes(16)),
        "shape of 2^64": array([2**32, 2**32], "float32", b""),
        "shape of 2^70": array([2**63, 2**63], "float32", bytes(4)),
        "shape in a shape": array([[1]], "float32", bytes(4)),
        "40 axes": array([1] * 40, "float32", bytes(4)),
        "few bytes": array([100], "float32", bytes(4)),
        "odd bytes": array([1], "float32", bytes(3)),
        "no shape": array(None, "float32", bytes(4)),
        "a text": "A" * 10**6,
        "a list": [1] * 10**5,
        "2^63": 2**63,
        "pieces of nothing": {"__msgpack_chunked_array__": True},
        "pieces of a text": {
            "__msgpack_chunked_array__": True, "shape": {"0": 1}, "chunks": {"0": "x"},
        },
        "huge pieces": {
            "__msgpack_chunked_array__": True,
            "shape": {"0": 1 << 40},
            "chunks": {"0": array([4], "float32", bytes(16))},
        },
    }  # fmt: skip
    for name, leaf in leaves.items():
        yield name, msgpack.packb({"ema_params": {**CONV, "x": leaf}})
    steps = (10**9, -1, 2**63, math.nan, 8.0, {"a": 1}, "8", b"8", [8], True)
    for value in (*steps, array([2], "int32", bytes(8)), array([], "bool", b"\1", 3)):
        yield f"steps {value!r:.40}", msgpack.packb({"ema_params": CONV, "num_sample_steps": value})
    yield from messages()


def messages():
    """Yields msgpack files that are wrong in their bytes or their structure."""
    raw = {
        "timestamp": b"\x81\xaaema_params\xd6\xff\0\0\0\0",
        "array of 2^32": b"\xdd\xff\xff\xff\xff",
        "map of 2^32": b"\xdf\xff\xff\xff\xff",
        "bytes of 2^32": b"\x81\xaaema_params\xc6\xff\xff\xff\xff",
        "extension of 2^32": b"\x81\xaaema_params\xc9\xff\xff\xff\xff\x01",
        "long arrays in arrays": (b"\xdd" + struct.pack(">I", 900_000)) * 500 + b"\xc0" * 10**6,
        "deep": b"\x91" * 10**6 + b"\xc0",
        "deep maps": b"\x81\xa1a" * 900 + b"\xc0",
        "empty maps": b"\xdc\x00\x1e" + b"\xdc\x00\x1e" * 30 + b"\x80" * 10**6,
        "maps of maps": b"\x81\xaaema_params\xdf\x00\x03\x00\x00"
        + b"".join(b"\xa5%05d\x80" % (i % 100_000) for i in range(196_608)),
        "a list": msgpack.packb([1, 2]),
        "a number": b"\x07",
        "a list for parameters": msgpack.packb({"ema_params": [1]}),
        "a list for a name": b"\x81\x91\x01\x02",
        "bytes for a name": msgpack.packb({b"ema_params": CONV}),
        "a name twice": b"\x82\xaaema_params\x80\xaaema_params\x80",
        "a number for a name": msgpack.packb({"ema_params": {**CONV, 1: 1}}),
        "300,000 names": msgpack.packb({str(i): 0 for i in range(300_000)}),
        "3,000 names": msgpack.packb({str(i): 0 for i in range(3000)}),
        "escapes": msgpack.packb({"ema_params": {**CONV, "\x1b[2J\nx": array([], data=bytes(4))}}),
        "names of 10^6 letters": msgpack.packb({"ema_params": {**CONV, "x" * 10**6: 1.0}}),
        "no channels": msgpack.packb({"ema_params": {"conv_in": {"kernel": array([0])}}}),
        "no axes": msgpack.packb({"ema_params": {"conv_in": {"kernel": array([], data=bytes(4))}}}),
        "only a convolution": msgpack.packb({"ema_params": CONV}),
        "cut": msgpack.packb({"ema_params": CONV})[:500],
    }
    yield from raw.items()


def headers():
    """Yields safetensors files; test_safetensors.py has those that are wrong in one entry."""
    good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    texts = {
        "10^5 lists": b'{"a":[' + b"[]," * 10**5 + b"1]}",
        "10^4 entries": json.dumps({str(i): {} for i in range(10**4)}).encode(),
        "10^4 empty arrays": json.dumps(
            {str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(10**4)}
        ).encode(),
        "NaN": b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}',
        "10^400": b'{"a":{"dtype":"F32","shape":[1e400],"data_offsets":[0,8]}}',
        "10^5 digits": b'{"a":{"dtype":"F32","shape":['
        + b"9" * 10**5
        + b'],"data_offsets":[0,8]}}',
        "10^18 sides": json.dumps({"a": {**good, "shape": [10**18, 10**18]}}).encode(),
        "offsets of 2^63": json.dumps({"a": {**good, "data_offsets": [2**63, 2**63 + 8]}}).encode(),
        "a dtype of 10^6 letters": json.dumps({"a": {**good, "dtype": "F" * 10**6}}).encode(),
        "a name of 10^6 letters": json.dumps({"x" * 10**6: {**good, "shape": [3]}}).encode(),
        "escapes": json.dumps({"\x1b[2J\n": {**good, "shape": [3]}}).encode(),
        "text for a shape": json.dumps({"a": {**good, "shape": "2"}}).encode(),
        "a shape twice": b'{"a":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}}',
        "metadata of 10^6": json.dumps({"__metadata__": "x" * 10**6, "a": good}).encode(),
        "no arrays": b"{}",
        "a mark of UTF-8": b"\xef\xbb\xbf{}",
        "an array of another network": json.dumps({"a": good}).encode(),
    }
    for name, content in texts.items():
        data = b"" if name in ("no arrays", "10^4 empty arrays") else bytes(8)
        yield name, struct.pack("<Q", len(content)) + content + data
    yield "a header of 5 MB", struct.pack("<Q", 5 << 20) + b"{}" + b" " * (5 << 20)


def others():
    """Yields files that are no checkpoints."""
    yield from {
        "nothing": b"",
        "zeros": bytes(1000),
        "noise": np.random.default_rng(0).bytes(1000),
        "PNG": b"\x89PNG\r\n\x1a\n" + bytes(50),
        "JSON": b'{"a": 1}',
        "a pickled number": pickle.dumps(1),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    }.items()


def in_a_network(table):
    return ((name, ema(body)) for name, body in table.items())


def in_a_state(table):
    """Yields archives of torch.save with these opcodes as their object."""
    for name, body in table.items():
        yield name, zipped({"data.pkl": b"\x80\x04" + body + b"."})


def in_an_old_state(table):
    """Yields files of torch.save before 1.6 with these opcodes as their object."""
    return ((name, legacy(Raw(body))) for name, body in table.items())


# Name -> (format, iterator of names and contents).
GROUPS = {
    "executing networks": ("edm", lambda: in_a_network(EXECUTING)),
    "executing states": ("adm", lambda: in_a_state(EXECUTING)),
    "executing states before 1.6": ("adm", lambda: in_an_old_state(EXECUTING)),
    "malformed networks": ("edm", lambda: in_a_network(MALFORMED)),
    "malformed states": ("adm", lambda: in_a_state(MALFORMED)),
    "malformed states before 1.6": ("adm", lambda: in_an_old_state(MALFORMED)),
    "growing networks": ("edm", lambda: in_a_network(GROWING)),
    "growing states": ("adm", lambda: in_a_state(GROWING)),
    "networks": ("edm", lambda: ((name, inside(name)) for name in INSIDE)),
    "states": ("adm", states),
    "archives": ("adm", archives),
    "training states": ("google_research", training_states),
    "headers": ("adm.safetensors", headers),
    **{
        f"others as {kind}": (kind, others)
        for kind in ("edm", "adm", "google_research", "adm.safetensors")
    },
}
