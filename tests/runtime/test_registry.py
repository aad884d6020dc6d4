"""Tests of names with a colon: which are imported, who may allow it, and the messages."""

import pathlib
import sys

import pytest

from distill_jax.diffusion.denoiser import Network
from distill_jax.methods import METHODS, Method
from distill_jax.models import NETWORKS
from distill_jax.runtime.registry import EVERYTHING, build, check_allowed, foreign, lookup

MODULE = """
import pathlib

pathlib.Path(__file__).with_name("executed").touch()
NUMBER = 3

def network(spec, width=8):
    return spec
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """Returns a folder on the path, with a package that records its import."""
    (tmp_path / "outside_package").mkdir()
    (tmp_path / "outside_package" / "code.py").write_text(MODULE)
    (tmp_path / "outside_package" / "broken.py").write_text("import nowhere_to_be_found")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield pathlib.Path(tmp_path / "outside_package" / "executed")
    for name in [name for name in sys.modules if name.startswith("outside_package")]:
        del sys.modules[name]


def test_a_name_is_not_imported_unless_allowed_and_the_message_says_how(outside):
    name = "outside_package.code:network"
    for allow in ((), ("outside_package.code:NUMBER",), ["outside_package.code"]):
        with pytest.raises(ValueError, match="outside distill_jax") as error:
            lookup(NETWORKS, "network", name, allow)
        text = str(error.value)
        for way in (f"allow=({name!r},)", f"--allow={name} ", f"config.allow = ({name!r},)"):
            assert way in text
    assert not outside.exists()
    assert lookup(NETWORKS, "network", name, (name,)).__name__ == "network"
    assert outside.exists()


def test_the_message_lists_every_name_that_is_not_allowed_once():
    assert foreign(["a:B", "mlp", None, 3, "c:D", "a:B"]) == ("a:B", "c:D")
    with pytest.raises(ValueError, match=r"load\(DIR, allow=\('a:B', 'c:D'\)\), --allow=a:B --all"):
        check_allowed(["a:B", "mlp", "c:D", "e:F"], allow=("e:F",))
    check_allowed(["a:B", "mlp"], EVERYTHING)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.code:X", "there is no module 'nowhere'; start the command in the folder"),
        ("outside_package.cod:X", "there is no module 'outside_package.cod'"),
        ("outside_package.code:netwrk", "has no 'netwrk'; did you mean 'network'"),
        ("outside_package.code:NUMBER", "is 3; expected a function or class"),
        ("outside_package.code:", "is no name; expected package.module:Name"),
        (":network", "is no name"),
        (".code:network", "is no name"),
        ("outside_package.code:a:b", "is no name"),
        ("outside_package/code.py:network", "is no name"),
    ],
)
def test_a_name_without_an_object_is_one_message(outside, name, message):
    with pytest.raises(ValueError, match=f"network '{name}'.*{message}"):
        lookup(NETWORKS, "network", name, EVERYTHING)


def test_a_module_that_lacks_another_module_is_not_reported_missing(outside):
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        lookup(NETWORKS, "network", "outside_package.broken:X", EVERYTHING)


def test_an_object_of_another_kind_is_refused(outside):
    spec = {"name": "outside_package.code:network"}
    with pytest.raises(ValueError, match="expected a Method"):
        build(METHODS, "method", spec, allow=EVERYTHING, makes=Method)
    with pytest.raises(ValueError, match="code:network' made a str; expected a Network"):
        build(NETWORKS, "network", spec, "spec", allow=EVERYTHING, makes=Network)
    with pytest.raises(KeyError, match="does not take 'wdth'; it takes: width; did you mean 'widt"):
        build(NETWORKS, "network", {**spec, "wdth": 1}, "spec", allow=EVERYTHING)
