"""The files were written by PyTorch 2.13: by torch.save, before and after its change of format in
1.6, and by pickle with objects that reduce as those of NVIDIA's torch_utils.persistence do.
"""

import pathlib
import pickle
import warnings
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.storage import unpickle
from distill_jax.storage.entries import EntryError
from distill_jax.storage.pytorch import read_persisted, read_state
from tests.teachers.pickles import (
    FLOAT,
    Call,
    Global,
    Stored,
    Twice,
    archive,
    dump,
    legacy,
    module,
    stored_bytes,
    tensor,
)

FILES = pathlib.Path(__file__).parents[1] / "teachers" / "files"


def values(*shape):
    """Returns the values in the files."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 8 - 1


STATE = {
    "transposed": values(4, 6).T,
    "part": values(24)[5:9],
    "parameter": values(2, 2),
    "float16": values(3).astype(np.float16),
    "bfloat16": values(5).astype(jnp.bfloat16),
    "float64": values(2),
    "int64": np.arange(3),
    "bool": np.asarray([True, False]),
    "scalar": np.float32(2.5),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("name", ["state.pt", "state_before_1_6.pt"])
def test_a_state_dict_of_torch_save_is_read_value_for_value(name):
    state = read_state(FILES / name)
    assert list(state) == list(STATE)
    for key, expected in STATE.items():
        assert state[key].dtype == expected.dtype
        np.testing.assert_array_equal(state[key].read(()), expected, strict=True)


def test_numbers_of_a_machine_of_the_other_byte_order_are_swapped(tmp_path):
    big = values(3).astype(">f4").tobytes()
    pickled = dump({"a": tensor(Stored("storage", FLOAT, "0", "cpu", 3), (3,))})
    path = archive(tmp_path, {"data.pkl": pickled, "byteorder": b"big", "data/0": big})
    np.testing.assert_array_equal(read_state(path)["a"].read(()), values(3))


def test_a_persisted_network_is_read_without_running_its_source():
    assert b"raise SystemExit" in (FILES / "persisted.pkl").read_bytes()
    network = read_persisted(FILES / "persisted.pkl")
    assert (network.class_name, network.init_args) == ("Precond", (8,))
    assert network.init_kwargs == {"img_channels": 3, "skip_scale": 0.5}
    assert type(network.init_kwargs["skip_scale"]) is float
    expected = {
        "model.map_noise.weight": values(2, 4),
        "model.enc.8x8_conv.weight": values(2, 3, 3, 3),
        "model.enc.4x4_down.resample_filter": values(2, 2),
    }
    assert list(network.state) == list(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(network.state[key].read(()), value)


def attacks(trap):
    """Returns values whose loading would write the file `trap`, or help to do so."""
    command = f"touch {trap}"
    return {
        "os.system": Call("os", "system", command),
        "posix.system": Call("posix", "system", command),
        "builtins.eval": Call("builtins", "eval", f"open({str(trap)!r}, 'w')"),
        "builtins.getattr": Call("builtins", "getattr", Global("os", "path"), "os"),
        "subprocess.call": Call("subprocess", "call", ["touch", str(trap)]),
        "torch.load": Call("torch", "load", "x"),
        "collections.OrderedDict.fromkeys": Call("collections", "OrderedDict.fromkeys", ()),
    }


def test_the_attacks_are_real(tmp_path):
    trap = tmp_path / "trap"
    pickle.loads(dump(attacks(trap)["os.system"]))
    assert trap.exists()


PLACES = {
    "in a state dict": lambda bad, folder: archive(folder, {"data.pkl": dump({"a": bad})}),
    "in a state dict before 1.6": lambda bad, folder: written(folder, legacy({"a": bad})),
    "as a network": lambda bad, folder: written(folder, dump({"ema": bad})),
    "beside a network": lambda bad, folder: written(
        folder, dump({"ema": module({}), "loss_fn": bad})
    ),
    "in the state of a module within": lambda bad, folder: written(
        folder, dump({"ema": module({}, {"model": module({}, hook=bad)})})
    ),
    "in the bytes of a storage": lambda bad, folder: written(
        folder, dump({"ema": module({"weight": tensor(stored_bytes(legacy(bad)), (1,))})})
    ),
}


def written(folder, content):
    path = folder / "model.pkl"
    path.write_bytes(content)
    return path


def read_any(path):
    return read_persisted(path) if b"ema" in path.read_bytes() else read_state(path)


@pytest.mark.parametrize("place", PLACES)
def test_a_hostile_pickle_is_refused_by_name_and_executes_nothing(place, tmp_path):
    trap = tmp_path / "trap"
    for name, bad in attacks(trap).items():
        path = PLACES[place](bad, tmp_path)
        # A call's arguments are read before the call is made, so an innermost name comes first.
        with pytest.raises(ValueError, match=f"it names {name}|it names os.path") as caught:
            read_any(path)
        assert "Nothing in it was executed" in str(caught.value)
        assert not trap.exists()


def loaded(content):
    return unpickle.Unpickler(unpickle.Reader(content), unpickle.Budget()).load()


def test_an_allowed_name_is_called_with_anything_and_does_nothing(tmp_path):
    trap = tmp_path / "trap"
    command = f"__import__('os').system('touch {trap}')"
    for name in unpickle.ALLOWED:
        record = loaded(dump(Call(*name.rsplit(".", 1), command)))
        assert type(record).__mro__[1:] == (unpickle.Record, object)
        assert record.args == (command,)
    assert not trap.exists()


STORAGE = Stored("storage", FLOAT, "0", "cpu", 4)
FORGED = {
    "size and bytes of a storage differ": (tensor(STORAGE, (4,)), 12, "of 4 elements has 12 bytes"),
    "shape beyond the storage": (tensor(STORAGE, (5,)), 16, "reaches outside its storage"),
    "offset beyond the storage": (tensor(STORAGE, (2,), (1,), 3), 16, "reaches outside"),
    "stride beyond the storage": (tensor(STORAGE, (2,), (4,)), 16, "reaches outside"),
    "memory from nothing": (tensor(STORAGE, (2**40,), (0,)), 16, "reaches outside"),
    "negative stride": (tensor(STORAGE, (2,), (-1,), 1), 16, r"strides \(-1,\)"),
    "negative offset": (tensor(STORAGE, (2,), (1,), -1), 16, "offset -1"),
    "shape and strides of two lengths": (tensor(STORAGE, (2, 2), (1,)), 16, "and strides"),
    "no tensor": (7, 16, "a tensor was expected, not int"),
    "no storage": (tensor(7, (1,)), 16, "int"),
    "pointer to code": (tensor(Stored("module", FLOAT, "0", "cpu", 4), (4,)), 16, "'module'"),
    "storage of no numbers": (
        tensor(Stored("storage", Global("numpy", "dtype"), "0", "cpu", 4), (4,)),
        16,
        "no storage of numbers",
    ),
    "storage in two ways": (
        (STORAGE, Stored("storage", FLOAT, "0", "cpu", 5)),
        16,
        "describes the storage '0' in two ways",
    ),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_tensor_is_refused(kind, tmp_path):
    value, size, message = FORGED[kind]
    path = archive(tmp_path, {"data.pkl": dump({"a": value}), "data/0": bytes(size)})
    with pytest.raises(ValueError, match=message):
        read_state(path)


def test_a_compressed_archive_is_refused(tmp_path):
    entries = {"data.pkl": dump({"a": tensor(STORAGE, (4,))}), "data/0": bytes(1 << 20)}
    path = archive(tmp_path, entries, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed, which PyTorch never does"):
        read_state(path)


def test_an_argument_of_a_trillion_parts_in_few_bytes_is_refused(tmp_path):
    argument = ()
    for _ in range(40):
        argument = Twice(argument)
    path = written(tmp_path, dump({"ema": module({}, _init_args=argument)}))
    assert path.stat().st_size < 1000
    with pytest.raises(ValueError, match="more than 300,000 steps"):
        read_persisted(path)


@pytest.mark.parametrize(
    "opcodes",
    [pickle.BYTEARRAY8 + b"\0\0\0\0\0\1\0\0", pickle.EXT1 + b"\1"],
    ids=["a terabyte of zeros", "a name from copyreg's table"],
)
def test_opcodes_that_no_network_needs_are_refused(opcodes, tmp_path):
    with pytest.raises(ValueError, match="KeyError"):
        read_persisted(written(tmp_path, b"\x80\x05" + opcodes + b"."))


def test_an_index_of_the_memo_beyond_all_memory_takes_none(tmp_path):
    content = b"\x80\x04N" + pickle.LONG_BINPUT + b"\xff\xff\xff\xff" + b"."
    assert loaded(content) is None


@pytest.mark.parametrize("name", ["state.pt", "state_before_1_6.pt", "persisted.pkl"])
def test_a_file_cut_short_anywhere_is_refused(name, tmp_path):
    content = (FILES / name).read_bytes()
    read = read_persisted if name.endswith("pkl") else read_state
    path = tmp_path / name
    for size in range(0, len(content), 97):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="Nothing in it was executed"):
            read(path)


def test_any_flipped_byte_is_refused_or_changes_no_more_than_values(tmp_path):
    path = tmp_path / "model.pkl"
    content = (FILES / "persisted.pkl").read_bytes()
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place, byte in zip(rng.integers(0, len(content), 300), rng.bytes(300), strict=True):
            path.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
            try:
                network = read_persisted(path)
            except ValueError as error:
                assert "Nothing in it was executed" in str(error)
            else:
                assert all(leaf.read(()).shape == leaf.shape for leaf in network.state.values())


@pytest.mark.parametrize("read", [read_state, read_persisted])
def test_a_file_of_another_kind_is_refused(read, tmp_path):
    with pytest.raises(ValueError, match="or not a"):
        read(written(tmp_path, b"\x89PNG\r\n\x1a\n" + bytes(100)))


def test_text_costs_steps_before_it_is_decoded():
    content = b"\x80\x04X" + (1 << 30).to_bytes(4, "little") + "\U0001f600".encode()
    with pytest.raises(unpickle.ForbiddenError, match="more than 300,000 steps"):
        loaded(content)


def saved(folder, value, **entries):
    return archive(folder, {"data.pkl": dump(value), "data/0": bytes(16), **entries})


WEIGHTS = {"a.b": tensor(STORAGE, (2, 2)), "c": tensor(STORAGE, (4,))}


def test_a_checkpoint_of_several_networks_lists_its_entries_and_takes_one_by_key(tmp_path):
    optimizer = {"state": {0: {"step": 1}}, "param_groups": []}
    path = saved(tmp_path, {"epoch": 3, "model": WEIGHTS, "net_ema": WEIGHTS, "opt": optimizer})
    message = (
        r"the entries epoch \(int\), model \(2 arrays\), net_ema \(2 arrays\), "
        r"opt \(a dict of 2\); .* for example --key=net_ema"
    )
    with pytest.raises(EntryError, match=message):
        read_state(path)
    assert list(read_state(path, "model")) == ["a.b", "c"]
    with pytest.raises(EntryError, match=r"--key=emma is not in the file, which has epoch"):
        read_state(path, "emma")
    assert list(read_state(saved(tmp_path, {"x": {"y": WEIGHTS}}), "x/y")) == ["a.b", "c"]


def test_prefixes_of_wrapped_modules_are_removed_and_others_chosen_by_key(tmp_path):
    wrapped = {f"module._orig_mod.{name}": value for name, value in WEIGHTS.items()}
    assert list(read_state(saved(tmp_path, wrapped))) == ["a.b", "c"]
    path = saved(tmp_path, {"ema.a.b": WEIGHTS["a.b"], "model.c": WEIGHTS["c"]})
    assert list(read_state(path, "ema")) == ["a.b"]


def test_arrays_that_share_data_are_refused_if_they_are_larger_than_the_file(tmp_path):
    views = {f"k{i}": tensor(STORAGE, (4,)) for i in range(3)}
    assert len(read_state(saved(tmp_path, views))) == 3
    many = {f"k{i}": tensor(Stored("storage", FLOAT, "1", "cpu", 2000), (2000,)) for i in range(3)}
    with pytest.raises(ValueError, match=r"its arrays have 24,000 bytes, and the file 8,"):
        read_state(saved(tmp_path, many, **{"data/1": bytes(8000)}))


def test_arrays_of_numpy_beside_a_network_are_passed_over(tmp_path):
    for numpy in ("numpy.core.multiarray", "numpy._core.multiarray"):
        array = Call(numpy, "_reconstruct", Global("numpy", "ndarray"), (0,), b"b")
        path = written(tmp_path, dump({"ema": module({}, grid=array), "scale": array}))
        assert read_persisted(path).state == {}


def test_a_pickle_without_the_usual_key_lists_its_networks(tmp_path):
    path = written(tmp_path, dump({"net": module({}), "loss_fn": 1}))
    with pytest.raises(EntryError, match=r"net \(a network Net\), loss_fn .* --key=net"):
        read_persisted(path)
    assert read_persisted(path, "net").class_name == "Net"
