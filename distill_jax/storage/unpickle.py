"""Reader of pickles that runs no code that they name, with time and memory that their size limits.

A pickle is a program: it names functions, and loading it calls them. Here every name resolves to a
Record, which stores the arguments of the call, and a name outside ALLOWED ends the reading. A
program can also be small and have a result whose hash, text or copies are exponentially large, so
every part of its work is paid from a Budget, and only short values become keys.
"""

import contextlib
import functools
import pickle
from collections.abc import Callable, Iterator
from typing import Any, no_type_check

import numpy as np
from etils import epath

from distill_jax.runtime.text import plain, reason, short
from distill_jax.storage.entries import EntryError

STORAGES: dict[str, str] = {  # Supported torch storages and their dtypes.
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.DoubleStorage": "float64",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
DICTS = {"collections.OrderedDict", "dnnlib.util.EasyDict"}
NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")  # Of numpy 1 and 2.
SCALARS = {f"{module}.scalar" for module in NUMPY}
ARRAYS = {f"{module}._reconstruct" for module in NUMPY}
TENSOR, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
BYTES = "torch.storage._load_from_bytes"
PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
CONTAINERS = {f"torch.nn.modules.container.{n}" for n in ("ModuleDict", "ModuleList", "Sequential")}
LAYERS = {f"torch.nn.modules.pooling.{n}" for n in ("AvgPool2d", "MaxPool2d")}
MODULES = (
    CONTAINERS | LAYERS | {"torch.nn.modules.linear.Linear"}
)  # Of their state only tensors count.
# What training states have beside the network: their records are never interpreted.
BESIDE = {"argparse.Namespace", "torch.device", "torch.Size", "_codecs.encode", "numpy.ndarray"}
ALLOWED = {*STORAGES, *DICTS, *SCALARS, *ARRAYS, *MODULES, *BESIDE}
ALLOWED |= {TENSOR, PARAMETER, BYTES, PERSISTENT, "numpy.dtype"}
MAX_STEPS = 300_000  # EDM's largest is estimated to take 100,000; no published file was counted.
MAX_LINE = 4096  # Bytes of a name or a number in the old text opcodes.
PART = 10  # Steps for a part of the result that is interpreted, such as a tensor.
TEXT = 64  # Characters for a step.


class ForbiddenError(Exception):
    """An error for a file that names code or data that no network needs."""


@no_type_check  # Its functions are called for every opcode.
class Budget:
    """The steps that are left for a file: opcodes, characters of text, parts of the result."""

    def __init__(self, steps: int = MAX_STEPS):
        self.left = steps

    def spend(self, steps: int = PART) -> None:
        """Takes steps; raises ForbiddenError when none are left."""
        self.left -= steps
        if self.left < 0:
            raise ForbiddenError(f"reading it takes more than {MAX_STEPS:,} steps")


@no_type_check  # Its functions are called for every opcode.
class Record:
    """An inert placeholder for an object that a pickle constructs.

    Attributes:
      origin: name in the pickle, MODULE.NAME; "storage" for a reference to data.
      args: arguments of the call.
      state: argument of the pickle's BUILD opcode; for a storage, its array.
      items: items that the pickle set.
    """

    origin = "storage"
    args: tuple
    items: dict

    def __new__(cls, *args: Any) -> "Record":
        record = super().__new__(cls)
        record.args, record.state, record.items = args, None, {}
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value


@no_type_check  # Its functions are called for every opcode.
class Reader:
    """A file over bytes in memory or in a memory map, which copies only what is read.

    Attributes:
      place: number of bytes that were read.
    """

    def __init__(self, content: bytes | np.ndarray):
        self.content, self.place = memoryview(content), 0  # type: ignore[arg-type]  # An array has a buffer.

    def view(self, size: int) -> memoryview:
        """Returns the next bytes without a copy; fewer at the end of the file."""
        part = self.content[self.place : self.place + size]
        self.place += len(part)
        return part

    def read(self, size: int) -> bytes:
        """Returns the next bytes; fewer at the end of the file."""
        return bytes(self.view(size))

    def readline(self) -> bytes:
        """Returns the bytes up to and with the next line feed.

        Raises:
          ForbiddenError: for a line of more than MAX_LINE bytes.
        """
        line = bytes(self.content[self.place : self.place + MAX_LINE])
        size = line.find(b"\n") + 1
        if not size and len(line) == MAX_LINE:
            raise ForbiddenError(f"it has a name or number of more than {MAX_LINE} characters")
        return self.read(size or len(line))


@no_type_check  # Its functions are called for every opcode.
class Opcodes(dict):
    """The functions for opcodes, each of which costs a step."""

    def __init__(self, functions: dict, budget: Budget):
        super().__init__(functions)
        self.budget = budget

    def __getitem__(self, opcode: int) -> Any:
        self.budget.spend(1)
        return super().__getitem__(opcode)


@no_type_check  # Its functions are called for every opcode.
class Unpickler(pickle._Unpickler):
    """An unpickler that returns records, lists, tuples, dicts, sets, strings and numbers.

    It is the unpickler written in Python. Its memo is a dict, so that a forged index of 2^32 takes
    no memory, and it stops at the end of a pickle that others follow. A large network has a hundred
    thousand opcodes, which take less than a second.

    Attributes:
      storages: records of the storages outside the pickle, by key.
    """

    stack: list  # These are attributes of the parent.
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list]
    load_reduce: Callable[[], None]
    load_newobj: Callable[[], None]

    def __init__(self, file: Reader, budget: Budget):
        super().__init__(file)
        self.budget = budget
        self.dispatch = Opcodes(FUNCTIONS, budget)  # type: ignore[misc]  # It is the class's there.
        self.storages: dict[str | int, Record] = {}

    def find_class(self, module: str, name: str) -> type[Record]:
        origin = f"{module}.{name}"
        if origin not in ALLOWED:
            raise ForbiddenError(f"it names {plain(origin)}, which no stored network needs")
        return record_type(origin)

    def persistent_load(self, pid: Any) -> Record:
        if type(pid) is not tuple or len(pid) < 5 or type(pid[2]) not in (str, int):
            raise ValueError(f"{short(pid)} points to no storage")
        kind, storage, key, _, size = pid[:5]
        origin = getattr(storage, "origin", None)
        if kind != "storage" or origin not in STORAGES or not is_size(size):
            raise ForbiddenError(f"it points to {short(kind)}, which is no storage of numbers")
        known = self.storages.setdefault(plain_key(key), Record(origin, size))
        if known.args != (origin, size):
            raise ForbiddenError(f"it describes the storage {short(key)} in two ways")
        return known

    def load_frame(self) -> None:
        self.read(8)  # Frames only speed up reading from a disk.

    def load_binunicode(self) -> None:
        size = int.from_bytes(self.read(4), "little")
        self.budget.spend(size // TEXT)  # A character may take four times as much memory.
        self.append(str(self.read(size), "utf-8", "surrogatepass"))

    def load_call(self) -> None:
        self.budget.spend(len(self.stack[-1]))  # A call copies its arguments.
        self.load_reduce()
        record = self.stack[-1]
        if record.origin in DICTS and record.args and type(record.args[0]) is list:
            self.budget.spend(len(record.args[0]))
            record.items = {plain_key(key): value for key, value in record.args[0]}
            record.args = ()

    def load_new(self) -> None:
        self.budget.spend(len(self.stack[-1]))
        self.load_newobj()

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append(dict(zip(map(plain_key, items[::2]), items[1::2], strict=True)))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][plain_key(key)] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][plain_key(key)] = value

    def load_frozenset(self) -> None:
        self.append(frozenset(map(plain_key, self.pop_mark())))

    def load_additems(self) -> None:
        items = self.pop_mark()
        self.stack[-1].update(map(plain_key, items))


# Opcodes that hash, copy or decode what the file says.
CHANGED = {
    pickle.FRAME: Unpickler.load_frame,
    pickle.BINUNICODE: Unpickler.load_binunicode,
    pickle.REDUCE: Unpickler.load_call,
    pickle.NEWOBJ: Unpickler.load_new,
    pickle.DICT: Unpickler.load_dict,
    pickle.SETITEM: Unpickler.load_setitem,
    pickle.SETITEMS: Unpickler.load_setitems,
    pickle.FROZENSET: Unpickler.load_frozenset,
    pickle.ADDITEMS: Unpickler.load_additems,
}
# Opcodes that allocate before they read, look names up in Python's registry, or need no network.
DROPPED = {pickle.BYTEARRAY8, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEWOBJ_EX}
DROPPED |= {pickle.BINUNICODE8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER}
FUNCTIONS = {**pickle._Unpickler.dispatch, **{code[0]: load for code, load in CHANGED.items()}}
for _code in DROPPED:
    del FUNCTIONS[_code[0]]


@contextlib.contextmanager
def reading(path: epath.PathLike, what: str) -> Iterator[None]:
    """Turns any exception that a damaged or hostile file causes into one ValueError."""
    try:
        yield
    except (OSError, EntryError):
        raise
    except ForbiddenError as error:
        raise ValueError(
            f"{path} is refused: {error}. Nothing in it was executed. Only take files from where "
            "the network was published; of a whole module that you trust, save model.state_dict()"
        ) from error
    except Exception as error:
        raise ValueError(
            f"{path} is cut short, damaged, or not {what} ({reason(error)}). Nothing in it was "
            "executed. Compare its size and checksum with those of the original, and download it "
            "again"
        ) from error


@functools.cache
def record_type(origin: str) -> type[Record]:
    """Returns the type of the records of a name in ALLOWED."""
    return type(origin.rpartition(".")[2], (Record,), {"origin": origin})


OTHER = record_type("object")


@no_type_check
def plain_key(key: Any) -> Any:
    """Returns a key whose hash is quick; another object, which no network has as key, is replaced.

    A tuple is hashed anew each time, also what it contains many times.
    """
    plain = type(key) in (str, bytes, float, bool, type(None))
    return key if plain or (type(key) is int and key.bit_length() <= 64) else OTHER()


def is_size(value: Any) -> bool:
    """Returns whether a value is a size or a place in a file."""
    return type(value) is int and 0 <= value < 2**60


def origin_of(value: Any) -> str:
    """Returns the name of a record's origin, or the name of another value's type."""
    return value.origin if isinstance(value, Record) else type(value).__name__
