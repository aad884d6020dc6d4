"""Compares the reader with bytes written by hand, and with a file of safetensors 0.8.0."""

import json
import pathlib
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.storage import safetensors
from distill_jax.storage.weights import of_array

OFFICIAL = pathlib.Path(__file__).parent / "files" / "written_by_safetensors.safetensors"


def values(*shape):
    """Returns the values in the file of the official library."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 8 - 1


STATE = {
    "a.weight": values(4, 6),
    "brain": values(2, 5).astype(jnp.bfloat16),
    "double": values(2),
    "empty": np.zeros((0, 3), np.float32),
    "flag": np.asarray([True, False]),
    "half": values(3).astype(np.float16),
    "scalar": np.asarray(2.5, np.float32),
    "whole": np.arange(3),
}


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def content(header, data=b""):
    """Returns the bytes of a file; the header may be text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_a_file_of_the_official_library_is_read_value_for_value():
    found = safetensors.read(OFFICIAL)
    assert sorted(found) == list(STATE)
    for name, expected in STATE.items():
        assert (found[name].shape, found[name].dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(found[name].read(()), expected, strict=True)
    np.testing.assert_array_equal(found["a.weight"].read(np.s_[1:2, 3:]), values(4, 6)[1:2, 3:])


def test_the_bytes_of_a_file_are_those_of_the_format(tmp_path):
    path = tmp_path / "out.safetensors"
    leaves = {"b": np.asarray([1, 2], np.float16), "a": np.asarray([[0.5]], jnp.bfloat16)}
    safetensors.write(path, {name: of_array(array) for name, array in leaves.items()})
    header = (
        b'{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[1,1],"data_offsets":[0,2]},'
        b'"b":{"dtype":"F16","shape":[2],"data_offsets":[2,6]}}'
    )
    header += b" " * (-len(header) % 8)
    expected = struct.pack("<Q", len(header)) + header + b"\x00\x3f" + b"\x00\x3c\x00\x40"
    assert path.read_bytes() == expected
    assert [file.name for file in tmp_path.iterdir()] == ["out.safetensors"]


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "out.safetensors"
    safetensors.write(path, {name: of_array(array) for name, array in STATE.items()})
    found = safetensors.read(path)
    assert sorted(found) == list(STATE)
    for name, expected in STATE.items():
        np.testing.assert_array_equal(found[name].read(()), expected, strict=True)


A = entry("F32", [2], 0, 8)
EIGHT = bytes(8)
MALFORMED = {
    "empty": (b"", "its header of 0 bytes exceeds"),
    "no length": (b"\x08\0\0", "its header of 8 bytes exceeds"),
    "truncated header": (content({"a": A}, EIGHT)[:30], "exceeds the file"),
    "huge header": (struct.pack("<Q", 2**63) + b"{}", "its header of 9,223,372,036,854,775,808"),
    "no JSON": (content(b"{'a': 1}"), "its header describes no arrays"),
    "no text": (content(b"\xff\xfe"), "its header describes no arrays"),
    "deep": (content(b"[" * 100_000), "its header describes no arrays"),
    "a list": (content([1]), "its header describes no arrays"),
    "an entry that is none": (content({"a": 1}), "its header describes no arrays"),
    "an entry without a shape": (content({"a": {"dtype": "F32"}}), "its header describes no"),
    "an unknown key": (content({"a": {**A, "run": "x"}}, EIGHT), "unexpected keyword argument"),
    "an unknown dtype": (content({"a": entry("F8", [2], 0, 8)}, EIGHT), "dtype 'F8' is none of"),
    "a dtype that is a list": (content({"a": entry([], [2], 0, 8)}, EIGHT), "is none of F16"),
    "a negative side": (content({"a": entry("F32", [-2], 0, 8)}, EIGHT), "-2 is no size"),
    "a side that is no number": (content({"a": entry("F32", [2.0], 0, 8)}, EIGHT), "2.0 is no"),
    "a bool for a side": (content({"a": entry("F32", [True], 0, 4)}, bytes(4)), "True is no size"),
    "one offset": (content({"a": {**A, "data_offsets": [0]}}, EIGHT), "its header describes no"),
    "memory from nothing": (content({"a": entry("F32", [2**61, 0], 0, 0)}), "beyond any file"),
    "a thousand axes": (content({"a": entry("F32", [1] * 1000, 0, 4)}, bytes(4)), "beyond any"),
    "out of bounds": (content({"a": entry("F32", [4], 0, 16)}, EIGHT), "bytes 0 to 16 of 8"),
    "another shape": (content({"a": entry("F32", [3], 0, 8)}, EIGHT), r"shape \(3,\), lies at"),
    "backwards": (content({"a": entry("F32", [2], 8, 0)}, EIGHT), "bytes 8 to 0 of 8"),
    "overlapping": (
        content({"a": A, "b": entry("F32", [2], 4, 12)}, bytes(12)),
        "b, float32 of shape .* bytes 4 to 12 of 12, and what is before it ends at 8",
    ),
    "twice in one place": (content({"a": A, "b": A}, EIGHT), "what is before it ends at 8"),
    "a gap": (content({"a": A, "b": entry("U8", [1], 9, 10)}, bytes(10)), "before it ends at 8"),
    "data left over": (content({"a": A}, bytes(9)), "its arrays end at byte 8 of 9"),
    "cut": (content({"a": A}, bytes(7)), "bytes 0 to 8 of 7"),
    "a name twice": (
        content(b'{"a":%s,"a":%s}' % ((json.dumps(A).encode(),) * 2), EIGHT),
        "a name occurs twice",
    ),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_file_is_refused_in_one_line(kind, tmp_path):
    written, message = MALFORMED[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(written)
    with pytest.raises(ValueError, match=message) as caught:
        safetensors.read(path)
    assert str(caught.value).startswith(f"{path} is cut short, damaged")
    assert "Nothing in it was executed" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_cut_anywhere_or_with_any_flipped_byte_is_refused_or_reads_whole_leaves(tmp_path):
    path, right = tmp_path / "model.safetensors", OFFICIAL.read_bytes()
    for size in range(len(right)):
        path.write_bytes(right[:size])
        with pytest.raises(ValueError, match="is cut short, damaged"):
            safetensors.read(path)
    rng = np.random.default_rng(0)
    for place, byte in zip(rng.integers(0, len(right), 300), rng.bytes(300), strict=True):
        path.write_bytes(right[:place] + bytes([byte]) + right[place + 1 :])
        try:
            found = safetensors.read(path)
        except ValueError as error:
            assert "is cut short, damaged" in str(error)
        else:
            assert all(leaf.read(()).shape == leaf.shape for leaf in found.values())


def sharded(folder, weight_map, files):
    for name, leaves in files.items():
        safetensors.write(folder / name, {key: of_array(array) for key, array in leaves.items()})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
FILES = {ONE: {"a": values(2)}, TWO: {"b": values(3), "c": values(1)}}
MAP = {"a": ONE, "b": TWO, "c": TWO}


def test_an_index_joins_its_files(tmp_path):
    index = sharded(tmp_path, MAP, FILES)
    found = safetensors.read(index)
    assert sorted(found) == ["a", "b", "c"]
    np.testing.assert_array_equal(found["b"].read(()), values(3))
    assert [file.name for file in safetensors.shards(index)] == [ONE, TWO]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({**MAP, "a": "../other.safetensors"}, r"it names the file '\.\./other.safetensors'"),
        ({**MAP, "a": "/etc/other.safetensors"}, "it names the file '/etc/other"),
        ({**MAP, "a": "..\\other.safetensors"}, "it names the file"),
        ({**MAP, "a": "c:other.safetensors"}, "it names the file"),
        ({**MAP, "a": "gs://bucket/other.safetensors"}, "it names the file"),
        ({**MAP, "a": ".."}, "it names the file"),
        ({**MAP, "a": "model.pkl"}, "it names the file 'model.pkl'; expected files"),
        ({**MAP, "a": 1}, "it names the file 1"),
        ({**MAP, "a": "none.safetensors"}, "none.safetensors does not exist; .* names it"),
        ({**MAP, "d": ONE}, "d is not in its files"),
        ({"a": ONE, "b": TWO}, "c is in its files and not in it"),
        ([ONE], "its weight_map is no object"),
    ],
)
def test_an_index_that_leaves_its_folder_or_does_not_fit_is_refused(weight_map, message, tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    safetensors.write(tmp_path / "other.safetensors", {"a": of_array(values(2))})
    with pytest.raises(ValueError, match=message):
        safetensors.read(sharded(inner, weight_map, FILES))


def test_an_array_in_two_files_of_an_index_is_refused(tmp_path):
    files = {ONE: {"a": values(2)}, TWO: {"a": values(2), "b": values(3)}}
    with pytest.raises(ValueError, match="has a, which another file"):
        safetensors.read(sharded(tmp_path, {"a": ONE, "b": TWO}, files))


def test_an_index_that_is_none_is_refused(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    for text in ("", "[]", "{}", "[" * 100_000, '{"weight_map": {}, "weight_map": {}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="it is no index with a weight_map"):
            safetensors.read(path)
