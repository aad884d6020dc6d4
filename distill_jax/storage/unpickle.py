"""Reader of PyTorch's pickles without PyTorch, which runs no code that they name.

A pickle is a program: it names functions, and loading it calls them. Here every name resolves to a
Record, which stores the arguments of the call, and a name outside ALLOWED ends the reading. The
records are interpreted afterwards. Formats: torch.save of torch 1.6 and later (a zip archive) and
before (a sequence of pickles), and the plain pickles of NVIDIA's torch_utils. Those contain the
source code of their networks, which is never compiled.
"""

import contextlib
import io
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from etils import epath

from distill_jax.storage.weights import BFLOAT16, Stored, mapped, of_array

# Supported torch storages and their dtypes.
STORAGES: dict[str, np.dtype] = {
    "torch.FloatStorage": np.dtype("f4"),
    "torch.HalfStorage": np.dtype("f2"),
    "torch.BFloat16Storage": BFLOAT16,
    "torch.DoubleStorage": np.dtype("f8"),
    "torch.LongStorage": np.dtype("i8"),
    "torch.IntStorage": np.dtype("i4"),
    "torch.ShortStorage": np.dtype("i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
DICTS = {"collections.OrderedDict", "dnnlib.util.EasyDict"}
SCALARS = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}
TENSOR, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
BYTES = "torch.storage._load_from_bytes"
PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
CONTAINERS = {f"torch.nn.modules.container.{n}" for n in ("ModuleDict", "ModuleList", "Sequential")}
ALLOWED = {*STORAGES, *DICTS, *SCALARS, *CONTAINERS, TENSOR, PARAMETER, BYTES, PERSISTENT}
ALLOWED.add("numpy.dtype")
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
MAX_PARTS = 20_000  # Far above any network; nested repeated references would grow exponentially.


class Persisted(NamedTuple):
    """A network of NVIDIA's torch_utils: its constructor arguments and its tensors.

    Attributes:
      class_name: class of the outermost module, such as EDMPrecond.
      init_args: positional arguments of its constructor.
      init_kwargs: named arguments of its constructor.
      state: tensors by PyTorch's names, such as "model.enc.32x32_conv.weight".
    """

    class_name: str
    init_args: tuple
    init_kwargs: dict[str, Any]
    state: dict[str, Stored]


class ForbiddenError(Exception):
    """An error for a file that names code or data that no network needs."""


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


class Unpickler(pickle._Unpickler):
    """An unpickler that returns records, lists, tuples, dicts, sets, strings and numbers.

    It is the unpickler written in Python. Its memo is a dict, so that a forged index of 2^32 takes
    no memory, and it stops at the end of a pickle that others follow. A large network has ten
    thousand small objects, which take less than a second.

    Attributes:
      storages: records of the storages outside the pickle, by key.
    """

    # Without opcodes that allocate memory before reading, or look names up in Python's registry.
    dispatch = {
        opcode: load
        for opcode, load in pickle._Unpickler.dispatch.items()
        if bytes([opcode]) not in (pickle.BYTEARRAY8, pickle.EXT1, pickle.EXT2, pickle.EXT4)
    }

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.storages: dict[str, Record] = {}

    def find_class(self, module: str, name: str) -> type[Record]:
        origin = f"{module}.{name}"
        if origin not in ALLOWED:
            raise ForbiddenError(f"it names {origin}, which is not needed to store a network")
        return type(name, (Record,), {"origin": origin})

    def persistent_load(self, pid: Any) -> Record:
        kind, storage, key, _, size = pid[:5]
        if kind != "storage" or storage.origin not in STORAGES or not isinstance(size, int):
            raise ForbiddenError(f"it points to a {kind!r} that is no storage of numbers")
        known = self.storages.setdefault(key, Record(storage.origin, size))
        if known.args != (storage.origin, size):
            raise ForbiddenError(f"it describes the storage {key!r} in two ways")
        return known


def read_state(path: epath.PathLike) -> dict[str, Stored]:
    """Reads the tensors of a state dict that torch.save wrote, by name.

    Tensors of a zip archive are views of the file; a file from before torch 1.6 is read whole.

    Raises:
      ValueError: if the file is damaged, of another format, or names code that is not allowed.
    """
    with _reading(path, "a state dict of PyTorch"):
        with epath.Path(path).open("rb") as file:
            zipped = zipfile.is_zipfile(file)
            found = _open_zip(file, mapped(path)) if zipped else _legacy(mapped(path).tobytes())
        return {_string(name): of_array(_tensor(it)) for name, it in _mapping(found).items()}


def read_persisted(path: epath.PathLike, key: str = "ema") -> Persisted:
    """Reads one network of a dict that was pickled with NVIDIA's torch_utils.persistence.

    Args:
      path: path of the pickle.
      key: key of the network in the dict.

    Raises:
      ValueError: if the file is damaged, of another format, or names code that is not allowed.
    """
    with _reading(path, f"a pickled dict with a network under {key!r}"):
        found = _mapping(Unpickler(io.BytesIO(epath.Path(path).read_bytes())).load())
        meta, fields = _persistent(found[key])
        budget = iter(range(MAX_PARTS))
        args, kwargs = (_plain(fields[name], budget) for name in ("_init_args", "_init_kwargs"))
        state: dict[str, Stored] = {}
        _collect(found[key], "", state, budget)
        return Persisted(_string(meta["class_name"]), args, kwargs, state)


@contextlib.contextmanager
def _reading(path: epath.PathLike, what: str) -> Iterator[None]:
    """Turns any exception that a damaged or hostile file causes into one ValueError."""
    try:
        yield
    except OSError:
        raise
    except ForbiddenError as error:
        raise ValueError(
            f"{path} is refused: {error}. Nothing in it was executed. Only take files from where "
            "the network was published"
        ) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ValueError(
            f"{path} is cut short, damaged, or not {what} ({reason}). Nothing in it was executed. "
            "Compare its size and checksum with those of the original, and download it again"
        ) from error


def _open_zip(file: BinaryIO, content: np.ndarray) -> Any:
    """Returns the object in a zip archive of torch.save; its storages are views of the bytes.

    PREFIX/data.pkl is the pickle, PREFIX/data/KEY the bytes of a storage, PREFIX/byteorder "little"
    or "big" (absent before torch 2.1, which means little).
    """
    archive = zipfile.ZipFile(file)
    entries = {entry.filename: entry for entry in archive.infolist()}
    # PyTorch stores without compression, so an archive cannot hold more than its own size.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise ForbiddenError("its archive is compressed, which PyTorch never does")
    if sum(entry.file_size for entry in entries.values()) > len(content):
        raise ForbiddenError("its archive claims to hold more than its own size")
    (pickled,) = (name for name in entries if name.rpartition("/")[2] == "data.pkl")
    prefix = pickled.removesuffix("data.pkl")
    order = f"{prefix}byteorder"
    big = order in entries and archive.read(order) == b"big"
    reader = Unpickler(io.BytesIO(archive.read(pickled)))
    found = reader.load()
    for key, storage in reader.storages.items():
        member = _member(entries[f"{prefix}data/{key}"], content)
        storage.state = _numbers(storage, member, big)
    return found


def _member(entry: zipfile.ZipInfo, content: np.ndarray) -> np.ndarray:
    """Returns a view of the bytes of an uncompressed archive member, after checking its checksum.

    Before them is a header of 30 bytes, which ends with the lengths of a name and of extra fields.
    """
    begin = entry.header_offset + 30
    name, extra = content[begin - 4 : begin].view("<u2").tolist()
    data = content[begin + name + extra :][: entry.file_size]
    if zlib.crc32(data.data) != entry.CRC:
        raise ValueError(f"the checksum of {entry.filename} is wrong")
    return data


def _legacy(content: bytes) -> Any:
    """Returns the object in a file of torch.save before 1.6, with its storages.

    The file has five pickles: a magic number, a version, facts about the machine, the object, and
    the keys of its storages. For each key follow the number of elements in 8 bytes, and those.
    """
    file = io.BytesIO(content)
    if (Unpickler(file).load(), Unpickler(file).load()) != (LEGACY_MAGIC, LEGACY_VERSION):
        raise ValueError("it does not begin as files of torch.save do")
    big = not Unpickler(file).load()["little_endian"]
    reader = Unpickler(file)
    found = reader.load()
    for key in Unpickler(file).load():
        storage = reader.storages[key]
        origin, size = storage.args
        if int.from_bytes(file.read(8), "big" if big else "little") != size:
            raise ValueError(f"storage {key!r} has another size than the {size} it should have")
        storage.state = _numbers(storage, file.read(size * STORAGES[origin].itemsize), big)
    return found


def _numbers(storage: Record, data: bytes | np.ndarray, big: bool) -> np.ndarray:
    """Returns the elements of a storage, a view of `data` unless the byte order is foreign."""
    origin, size = storage.args
    dtype = STORAGES[origin]
    if len(data) != size * dtype.itemsize:
        raise ValueError(f"a storage of {size} elements has {len(data)} bytes")
    words = np.frombuffer(data, f"{'>' if big else '<'}u{dtype.itemsize}")
    return words.astype(words.dtype.newbyteorder("="), copy=False).view(dtype)


def _tensor(record: Any) -> np.ndarray:
    """Returns the array that the record of a tensor or a parameter describes."""
    while _origin(record) == PARAMETER:
        record = record.args[0]
    if _origin(record) != TENSOR:
        raise ValueError(f"a tensor was expected, not {_origin(record)}")
    storage, offset, shape, strides = record.args[:4]
    if _origin(storage) == BYTES:
        (content,) = storage.args
        storage = _legacy(content)
    elements = storage.state
    if not isinstance(elements, np.ndarray):
        raise ValueError("the data of a tensor are missing")
    if min(offset, *shape, *strides, 0) < 0 or len(shape) != len(strides):
        raise ValueError(f"a tensor has offset {offset}, shape {shape} and strides {strides}")
    size = int(np.prod(shape, dtype=object))
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    # A tensor cannot have more elements than its storage; strides of 0 would forge a large one.
    if size > elements.size or (size and last >= elements.size):
        raise ForbiddenError(
            f"a tensor of shape {shape} reaches outside its storage of {elements.size} elements"
        )
    steps = tuple(step * elements.itemsize for step in strides)
    rest = elements[offset:]
    return np.lib.stride_tricks.as_strided(rest, shape, steps, writeable=False)


def _collect(module: Any, prefix: str, state: dict[str, Stored], budget: Iterator[int]) -> None:
    """Adds the parameters and buffers of a module and its submodules to `state`, by name."""
    _spend(budget)
    fields = module.state if _origin(module) in CONTAINERS else _persistent(module)[1]
    passing = fields.get("_non_persistent_buffers_set", ())
    tensors = {**_mapping(fields["_parameters"]), **_mapping(fields["_buffers"])}
    for name, value in tensors.items():
        if value is not None and name not in passing:
            state[prefix + name] = of_array(_tensor(value))
    for name, value in _mapping(fields["_modules"]).items():
        if value is not None:
            _collect(value, f"{prefix}{name}.", state, budget)


def _persistent(record: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Returns the metadata of a persistent object and its attributes; never runs `module_src`."""
    if _origin(record) != PERSISTENT:
        raise ValueError(f"a network was expected, not {_origin(record)}")
    (meta,) = record.args
    return _mapping(meta), _mapping(_mapping(meta)["state"])


def _plain(value: Any, budget: Iterator[int]) -> Any:
    """Converts an argument to Python's own types."""
    _spend(budget)
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item, budget) for item in value)
    if isinstance(value, dict) or _origin(value) in DICTS:
        return {_string(key): _plain(item, budget) for key, item in _mapping(value).items()}
    if _origin(value) in SCALARS:
        dtype, data = value.args
        if dtype.args[0][0] not in "fiub":
            raise ForbiddenError(f"it has a number of type {dtype.args[0]!r}")
        return np.frombuffer(data, np.dtype(dtype.args[0]).newbyteorder(dtype.state[1])).item()
    if isinstance(value, Record):
        raise ForbiddenError(f"it was made with an argument of type {_origin(value)}")
    return value


def _spend(budget: Iterator[int]) -> None:
    if next(budget, None) is None:
        raise ForbiddenError(f"its network has more than {MAX_PARTS:,} parts")


def _mapping(value: Any) -> Mapping[Any, Any]:
    """Returns a dict from a dict or the record of a dict."""
    if isinstance(value, dict):
        return value
    if _origin(value) not in DICTS:
        raise ValueError(f"a dict was expected, not {_origin(value)}")
    return {**dict(*value.args), **value.items}


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a name was expected, not {_origin(value)}")
    return value


def _origin(value: Any) -> str:
    """Returns the name of a record's origin, or the name of another value's type."""
    return value.origin if isinstance(value, Record) else type(value).__name__
