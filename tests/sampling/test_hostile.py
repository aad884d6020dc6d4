"""Tests that finished networks from anywhere either load or are refused in one message.

Nothing in their directories is executed or waited for, no file outside of them is read, and no
memory is taken for what their files only claim.
"""

import gc
import json
import os
import pathlib
import re
import resource
import shutil
import signal

import jax
import numpy as np
import pytest
from etils import epath

from distill_jax.evaluation.compare import root
from distill_jax.runtime.app import is_message
from distill_jax.sampling.loading import describe, load
from distill_jax.storage import checksums, trees
from distill_jax.storage.writing import in_background

# Orbax's files of a read that failed report to an event loop that is closed, see app.run_app.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
FIRST = pathlib.Path(__file__).parent / "first_student"
NESTED = '{"format": 3, "a": ' + "[" * 100_000
ABSENT = object()
NAN, INF = float("nan"), float("inf")
BASE = {"path": "../../s00_base/final", "fingerprint": 1}
LABEL = {"shape": [], "dtype": "int32", "classes": 10}

# Values by the field of the manifest, with dots between the keys; all of them are refused.
FIELDS = {
    "format": [True, -5, 0, 3.0, "3", None, 2**63, ABSENT],
    "checksum": ["x", [], -1],
    "fingerprint": ["x", [], -1, 2**32, True, 7],
    "stage": ["", 3, None, ABSENT, "a" * 10**6, "a\nerror: b", "\x1b[2J\x1b]0;x\x07", "a\u202eb"],
    "distilled": [1, "yes", None, ABSENT],
    "parameterization": [[1], "w", "", ABSENT],
    "matmul_precision": ["lowest", [], 5],
    "metrics": [[], "x", {"protocol": "\x9b2J"}],
    "data": [[], "digits", 5],
    "fake": ["x", -1],
    "trained": [None, [], {}, ABSENT],
    "trained.sampler": [
        [1],
        {},
        {"name": "bogus"},
        {"name": "ddim"},
        {"name": "ddim", "num_steps": 1, "more": 2},
        {"name": "os:system"},
        {"name": "distill_jax.sampling.no_module:Name"},
        {"name": "renoise", "times": []},
        {"name": "renoise", "times": "abc"},
        {"name": "renoise", "times": [INF]},
        {"name": "renoise", "times": [0.5, 1.0]},
        {"name": "renoise", "times": [0.5] * 5000},
        {"name": "renoise", "times": [1.0], "resolutions": [10**5]},
        {"name": "renoise", "times": [1.0, 0.5], "resolutions": [0, 8]},
        {"name": "signal", "t_min": "a", "t_max": 1},
        {"name": "ancestral", "num_steps": 1, "variance": 7},
    ],
    "trained.sampler.name": [[1], {}, None, ABSENT, "x" * 10**6],
    "trained.sampler.num_steps": [0, -1, 10**8, 10**12, NAN, "4", True, 1.5, [1], {"a": 1}],
    "trained.guidance": [None, [], {}],
    "trained.guidance.w_range": [[NAN, 4.0], "ab", [0, 1, 2], [4, 0], [0, INF], [-1, 1], 5, None],
    "trained.guidance.fixed_w": [INF, NAN, "x", None, 10**9],
    "trained.guidance.null": [5, None, "no"],
    "trained.guidance.more": [5],
    "trained.all_times": ["no", None, 1],
    "trained.saturated": ["no", None],
    "trained.resolutions": [[-1], 5, "ab", [10**9], [0.5], ABSENT],
    "spec": [None, {}, []],
    "spec.x.shape": ["abc", None, [], [8, 8], [8, 8, 1, 1], [8.0, 8, 1], [-8, 8, 1], [0, 8, 1]],
    "spec.x": [{"shape": [True, True, 1]}, {"shape": [100_000, 100_000, 1]}, None],
    "spec.x.dtype": ["object", "O", [1], None, "float64"],
    "spec.x.classes": [5],
    "spec.bounded": ["no", None],
    "spec.cond": [[], None, {"x" * 10**5: LABEL}, {"label": {**LABEL, "shape": [10**6, 10**6]}}],
    "spec.cond.label": [None, [], {}, {**LABEL, "shape": "ab"}, {**LABEL, "dtype": "float32"}],
    "spec.cond.label.dtype": ["O", "object", [], None],
    "spec.cond.label.classes": [10**12, "10", -1, 0, 1.5, True, [1]],
    "model": [
        None,
        {},
        {"name": "dit", "width": 32, "heads": 10**9, "blocks": 1},
        {"name": "dit", "width": 32, "heads": 0, "blocks": 1},
        {"name": "dit", "width": 32, "patch": 0, "heads": 1},
        {"name": "unet", "channels": 32, "embedding": 4, "multipliers": [1] * 5000, "blocks": 1},
        {"name": "song_unet", "multipliers": [0], "attention": []},
        {"name": "song_unet", "attention": "x"},
        {"name": "song_unet", "channels": 4, "blocks": 10**4, "attention": []},
        {"name": "adm_unet", "head_dim": 0, "attention": []},
        {"name": "mixture"},
    ],
    "model.name": [[], None, ABSENT, "os.system", "os:system"],
    "model.blocks": [-1, True, 1.5, "x", 10**4, 10**7, 10**12, NAN],
    "model.width": [0, -1, 2.5, "x", [32], {"a": 1}, None, NAN, True, 10**9],
    "model.more": [1],
    "schedule": [
        None,
        {},
        {"name": "x"},
        {"name": "os:system"},
        {"name": "cosine", "logsnr_min": NAN, "logsnr_max": 20.0},
        {"name": "cosine", "logsnr_min": "x"},
        {"name": "cosine", "logsnr_min": [1]},
        {"name": "cosine", "logsnr_min": 1.0, "logsnr_max": 1.0},
        {"name": "ddpm", "num_steps": 10**9},
        {"name": "ddpm", "num_steps": 0},
        {"name": "ddpm", "beta_max": 5.0},
        {"name": "ddpm", "power": 0},
        {"name": "karras", "rho": 0.0},
    ],
    "lineage": [None, [], {}, {"method": {"name": "x"}, "mother": 1}],
    "lineage.method": [[], {}, {"name": []}, {"name": "\x1b[2J"}],
    "lineage.parent": [5, []],
    "lineage.updates": ["many", -1, 1.5],
    "lineage.source": ["x", 5],
    "lineage.versions": [[]],
    "adapters": [
        [],
        {"base": BASE, "rank": 10**9, "full": []},
        {"base": BASE, "rank": True, "full": []},
        {"base": BASE, "rank": 1, "full": 5},
        {"base": BASE, "rank": 1},
        {"base": {"path": "/etc", "fingerprint": "x"}, "rank": 1, "full": []},
    ],
    "codec": [[], {"path": 5, "fingerprint": 1}, {"path": "a"}],
}
# Fields that fit together, but not with the arrays beside them, or that lead outside.
UNLIKE = {
    "model.width": (60_000, "takes 187,236,480,256"),
    "model.expand": (64, "does not fit"),
    "model": ({"name": "dit", "blocks": 1024}, "takes"),
    "spec.cond.label.classes": (1_000_000, "does not fit"),
    "spec.cond": ({"w": {"shape": [], "dtype": "float32", "classes": None}}, "does not fit"),
    "spec.x.shape": ([16, 16, 1], "does not fit"),
    "codec": ({"path": "gs://somebody/x", "fingerprint": 1}, "nowhere, for it is outside"),
    "adapters": ({"base": {**BASE, "path": "/etc"}, "rank": 1, "full": []}, "does not fit"),
    "trained.sampler": (
        {"name": "renoise", "times": [1.0, 0.5], "resolutions": [4]},
        "takes no other size",
    ),
}


def put(final, name, value):
    """Changes a field of the manifest, and its checksum."""
    path = final / "manifest.json"
    part = content = json.loads(path.read_text())
    *parents, last = name.split(".")
    for parent in parents:
        part = part[parent]
    if value is ABSENT:
        del part[last]
    else:
        part[last] = value
    path.write_text(json.dumps(content if name == "checksum" else checksums.with_checksum(content)))


def write(name, content):
    return lambda final: (final / name).write_bytes(content)


def replace(name, make):
    """Returns a change that puts something else in place of a file or folder."""

    def change(final):
        path = final / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    return change


def linked(name, target="/dev/zero"):
    return replace(name, lambda path: path.symlink_to(target))


def moved(name):
    """Returns a change that moves a file or folder out of final/, and links to it."""

    def change(final):
        place = final.parent / "elsewhere"
        (final / name).rename(place)
        (final / name).symlink_to(place)

    return change


def listed(**files):
    """Returns a change of the entries of checksums.json."""

    def change(final):
        path = final / "params" / "checksums.json"
        content = json.loads(path.read_text())
        content["files"].update(files)
        path.write_text(json.dumps(checksums.with_checksum(content)))

    return change


def resealed(pattern, change):
    """Returns a change of files in params/, whose checksums are then made to fit."""

    def changed(final):
        for path in (final / "params").glob(pattern):
            change(path)
        checksums.write(final / "params", "s07_n0001")

    return changed


def metadata(old, new):
    return resealed("_METADATA", lambda path: path.write_text(re.sub(old, new, path.read_text())))


def flip(path):
    content = bytearray(path.read_bytes())
    content[::97] = bytes(byte ^ 0x5A for byte in content[::97])
    path.write_bytes(content)


def sparse(final):
    os.truncate(final / LARGEST, 2**40)
    listed(**{LARGEST.removeprefix("params/"): [2**40, 5]})(final)


LARGEST = "params/ocdbt.process_0/d/a701d377a392b8329cacf57c311de61e"
DAMAGED, UNREADABLE, STRANGE = "is damaged", "cannot be read", "is no regular file"
FILES = {
    "a manifest of little": (write("manifest.json", b'{"format": 3}'), "stage None"),
    "a manifest that is a list": (write("manifest.json", b"[]"), "expected a dict"),
    "a nested manifest": (write("manifest.json", NESTED.encode()), "too many levels"),
    "a manifest in another encoding": (write("manifest.json", b'{"a": "\xff"}'), "utf-8"),
    "a manifest that is a folder": (replace("manifest.json", os.mkdir), STRANGE),
    "a manifest that is a device": (linked("manifest.json"), STRANGE),
    "a manifest that is a pipe": (replace("manifest.json", os.mkfifo), STRANGE),
    "a manifest elsewhere": (moved("manifest.json"), STRANGE),
    "a listing of a device": (listed(**{"/dev/zero": [1, 1]}), "/dev/zero is missing"),
    "a listing of files elsewhere": (listed(**{"../" * 20 + "etc/passwd": [1, 1]}), "is missing"),
    "a listing of the folder above": (listed(**{"..": [1, 1]}), "is missing"),
    "a listing of the folder": (listed(**{"": [1, 1]}), "is missing"),
    "a listing of a number": (listed(_METADATA=5), "checksums.json cannot be read"),
    "a listing of nothing": (listed(_METADATA=None), "checksums.json cannot be read"),
    "a listing of text": (listed(_METADATA="ab"), "checksums.json cannot be read"),
    "a nested listing": (write("params/checksums.json", NESTED.encode()), DAMAGED),
    "a listing that is a device": (linked("params/checksums.json"), STRANGE),
    "a listing that is a pipe": (replace("params/checksums.json", os.mkfifo), STRANGE),
    "parameters elsewhere": (moved("params"), STRANGE),
    "no parameters": (lambda final: shutil.rmtree(final / "params"), DAMAGED),
    "a folder in itself": (lambda final: (final / "params/d/up").symlink_to(".."), STRANGE),
    "data that are a pipe": (replace(LARGEST, os.mkfifo), STRANGE),
    "data that are a device": (linked(LARGEST), STRANGE),
    "data elsewhere": (moved(LARGEST), STRANGE),
    "data with a hole of a terabyte": (sparse, "it has 1,099,511"),
    "nested metadata": (resealed("_METADATA", lambda p: p.write_text(NESTED)), "too many levels"),
    "no metadata": (resealed("_METADATA", pathlib.Path.unlink), UNREADABLE),
    "empty metadata": (resealed("_METADATA", lambda p: p.write_text("{}")), UNREADABLE),
    "binary metadata": (resealed("_METADATA", lambda p: p.write_bytes(b"\xff\xfe")), UNREADABLE),
    "metadata of an unknown type": (metadata("jax.Array", "os.system"), UNREADABLE),
    "metadata of numbers": (metadata("jax.Array", "scalar"), UNREADABLE),
    "metadata of text": (metadata("jax.Array", "string"), UNREADABLE),
    "metadata of arrays elsewhere": (metadata("kernel", "../../kernel"), "has the name"),
    "metadata of a list": (metadata('"key_type": 2', '"key_type": 1'), UNREADABLE),
    "metadata of an unknown key": (metadata('"key_type": 2', '"key_type": 9'), UNREADABLE),
    "metadata of another storage": (metadata('zarr3": false', 'zarr3": true'), UNREADABLE),
    "metadata of single files": (metadata('ocdbt": true', 'ocdbt": false'), UNREADABLE),
    "nested shardings": (resealed("_sharding", lambda p: p.write_text(NESTED)), UNREADABLE),
    "no shardings": (resealed("_sharding", lambda p: p.write_text("{}")), UNREADABLE),
    "no shapes": (resealed("array_metadatas/*", lambda p: p.write_text("{")), UNREADABLE),
    "a database cut short": (
        resealed("**/manifest.ocdbt", lambda p: p.write_bytes(p.read_bytes()[:20])),
        UNREADABLE,
    ),
    "a damaged database": (resealed("**/manifest.ocdbt", flip), UNREADABLE),
    "damaged data": (resealed("**/d/*", flip), UNREADABLE),
    "no data": (resealed("**/d/*", pathlib.Path.unlink), UNREADABLE),
    "empty data": (resealed("**/d/*", lambda path: path.write_bytes(b"")), UNREADABLE),
}
# Changes that do no harm.
READ = {
    "a teacher elsewhere": lambda final: put(final, "lineage.parent", "../" * 20 + "etc"),
    "arrays of NumPy": metadata("jax.Array", "np.ndarray"),
    "a mesh of many devices": resealed(
        "_sharding", lambda p: p.write_text(p.read_text().replace("[1, 1, 1]", "[99999, 99999, 1]"))
    ),
    "wrong shapes beside the arrays": resealed(
        "array_metadatas/*", lambda p: p.write_text(p.read_text().replace("[11, 32]", "[11, 99]"))
    ),
    "a file that nobody reads": write("params/other", b"x"),
}


@pytest.fixture(scope="module", autouse=True)
def report_here():
    """Lets those files report in this module, and in no other."""
    yield
    gc.collect()


@pytest.fixture
def final(tmp_path):
    """Returns final/ of a good student, with 10 s and 2 GB for what happens to it."""

    def end(*_):
        raise AssertionError("the directory takes too long")

    before, limits = signal.signal(signal.SIGALRM, end), resource.getrlimit(resource.RLIMIT_AS)
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, limits[1]))
    signal.alarm(10)
    shutil.copytree(FIRST / "final", tmp_path / "s07_n0001" / "final")
    yield tmp_path / "s07_n0001" / "final"
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, limits)


def refused(final):
    """Returns the message, of one line, with which a student is refused."""
    with pytest.raises((ValueError, KeyError, OSError)) as caught:
        load(final).sample(0, 2)
    text = str(caught.value)
    assert is_message(caught.value), caught.getrepr()
    assert text.isprintable(), text
    assert len(text) < 1500, text
    return text


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(name, value, id=name) for name, values in FIELDS.items() for value in values],
)
def test_a_field_of_another_type_or_range_is_refused(name, value, final):
    put(final, name, value)
    assert str(final) in refused(final)


@pytest.mark.parametrize("name", UNLIKE)
def test_a_description_that_its_arrays_do_not_fit_is_refused(name, final):
    value, expected = UNLIKE[name]
    put(final, name, value)
    assert expected in refused(final)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", FILES)
def test_files_that_are_damaged_endless_or_elsewhere_are_refused(name, final):
    change, expected = FILES[name]
    change(final)
    if (final / "manifest.json").is_file() and "manifest" not in name:
        put(final, "fingerprint", ABSENT)
    assert expected in refused(final)


@pytest.mark.parametrize("name", READ)
def test_what_does_no_harm_is_read(name, final):
    READ[name](final)
    put(final, "fingerprint", ABSENT)
    assert np.isfinite(load(final).sample(0, 2)).all()


@pytest.mark.parametrize("value", [NAN, INF])
def test_weights_that_are_not_finite_are_refused(value, final):
    params = jax.tree.map(np.array, load(final).params)
    params["up_0"]["kernel"][0, 0] = value
    shutil.rmtree(final / "params")
    trees.write(epath.Path(final / "params"), params, in_background(lambda: None))
    checksums.write(final / "params", "s07_n0001")
    put(final, "fingerprint", ABSENT)
    assert "has values of up_0/kernel that are not finite" in refused(final)


def test_a_lineage_is_followed_within_its_workdir_and_to_places_that_the_user_names(final, capsys):
    workdir = final.parent.parent
    shutil.copytree(workdir / "s07_n0001", workdir / "s06_n0002")
    for other, parent in (("s06_n0002", "s07_n0001"), ("s07_n0001", "s06_n0002")):
        put(workdir / other / "final", "stage", other)
        put(workdir / other / "final", "lineage.parent", f"../../{parent}/final")
    assert root(describe(final)) is None  # Each is the other's teacher.
    elsewhere = workdir / "elsewhere" / "final"
    shutil.copytree(final, elsewhere)
    put(elsewhere, "distilled", False)
    put(final, "lineage.parent", str(elsewhere))
    assert root(describe(final)) is None
    assert f"--base={elsewhere} compares with it" in capsys.readouterr().out
    assert root(describe(final, parts=[elsewhere])).directory == elsewhere
