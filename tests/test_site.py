"""Tests of the site of docs/: it is built without a warning, and its links lead somewhere."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
import yaml

from tests.toys import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
BLOB = "https://github.com/distill-jax/distill_jax/blob/main/"
STRICT = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir"]
without_code = re.compile(r"```.*?```", re.DOTALL).sub


class Loader(yaml.SafeLoader):
    """Reads the settings without the objects that mkdocs makes of them."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, name, node: name)
SETTINGS = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)  # noqa: S506 - a SafeLoader.


def pages_of(nav):
    """Yields the files of a nav of any depth."""
    for entry in nav:
        (value,) = entry.values()
        yield from [value] if isinstance(value, str) else pages_of(value)


def anchors(path):
    """Returns the anchors of a page's headings, as GitHub and the site make them."""
    text = without_code("", path.read_text())
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_page_is_once_in_the_navigation():
    assert sorted(pages_of(SETTINGS["nav"])) == [path.name for path in PAGES]
    assert SETTINGS["strict"]
    assert set(SETTINGS["validation"]["links"].values()) == {"warn"}  # Errors of a strict build.


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_are_there(path):
    for link in LINK.findall(without_code("", path.read_text())):
        if link.startswith(BLOB):
            assert (ROOT / link.removeprefix(BLOB)).exists(), link
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        assert path.parent != DOCS or target.is_relative_to(DOCS), f"{link} is not in the site"
        assert not anchor or anchor in anchors(target), link


def test_the_code_of_the_tutorial_is_that_of_the_example():
    lines = (ROOT / "examples" / "my_method.py").read_text().splitlines()
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "tutorial_method.md").read_text(), re.S)
    (block,) = (block for block in blocks if "class Direct" in block)
    assert [line for line in block.splitlines() if line not in lines] == []


def test_the_entry_for_bibliographies_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    text = (DOCS / "cite.md").read_text()
    for value in (citation["version"], citation["license"], citation["repository-code"]):
        assert f"{{{value}}}" in text


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs mkdocs: extra docs")
def test_the_site_is_built_without_a_warning_and_asks_no_other_host(tmp_path):
    demo = tmp_path / "demo" / "digits"
    (demo / "runtime").mkdir(parents=True)
    (demo / "index.html").write_text("<!doctype html><title>A page</title>")
    (demo / "runtime" / "ort.js").write_text("")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "DEMO_PAGES": str(demo.parent)}
    site = tmp_path / "site"
    done = subprocess.run(
        [*STRICT, str(site)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr
    for page in SETTINGS["nav"][0].values():
        assert (site / page).with_suffix(".html").exists()
    assert 'href="digits/"' in (site / "demo" / "index.html").read_text()
    assert (site / "demo" / "digits" / "runtime" / "ort.js").exists()
    assert not list(site.rglob("hooks.*"))
    for path in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link)[^>]* (?:src|href)="(https?:[^"]+)"', path.read_text()
        )
        assert loaded == [], path
