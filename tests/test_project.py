"""Tests of the project around the code: its version, its types, and its workflows' commands."""

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import distill_jax
from tests.toys import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PYTHONS = ["3.11", "3.12", "3.13"]


def bounds():
    """Returns the lower bounds of setup.py by package, with and without extras."""
    found = {}
    text = (ROOT / "setup.py").read_text()
    for name, version in re.findall(r'"([\w-]+)(?:\[[\w-]+\])?>=([\d.]+)"', text):
        found.setdefault(name, set()).add(Version(version))
    return found


def jobs(path):
    return yaml.safe_load(path.read_text())["jobs"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Returns the built wheel, and its files."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT / "distill_jax", folder / "distill_jax")
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    command = [sys.executable, "setup.py", "-q", "bdist_wheel"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (built,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return built, set(archive.namelist())


def test_the_wheel_has_the_version_every_module_and_the_mark_of_a_typed_package(wheel):
    built, files = wheel
    assert built.name.startswith(f"distill_jax-{distill_jax.__version__}-")
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "distill_jax").rglob("*.py")}
    web = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "distill_jax" / "evaluation" / "web").iterdir()
    }
    assert files >= {*modules, *web, "distill_jax/py.typed"}


def test_an_installed_wheel_has_the_page_and_the_students(wheel, tmp_path):
    built, files = wheel
    for folder in ("teachers/web", "students"):
        found = (ROOT / "distill_jax" / folder).rglob("*")
        names = {str(path.relative_to(ROOT)) for path in found if path.is_file()}
        assert names
        assert names <= files
    with zipfile.ZipFile(built) as archive:
        archive.extractall(tmp_path / "site")
    script = "import distill_jax; print(distill_jax.load('digits').directory)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(tmp_path / "site" / "distill_jax" / "students"))


def test_citation_and_changelog_are_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == distill_jax.__version__
    assert citation["authors"] == [{"name": "The distill_jax authors"}]
    assert f'license="{citation["license"]}"' in (ROOT / "setup.py").read_text()
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == distill_jax.__version__


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_commands_of_a_workflow_are_scripts_that_take_these_words(path):
    commands = [
        step["run"] for job in jobs(path).values() for step in job["steps"] if "run" in step
    ]
    assert commands
    for command in commands:
        program, *words = shlex.split(command)
        if program == "docker":
            continue
        assert program in ("launch/test.sh", "launch/lowest.sh")
        done = subprocess.run(
            [ROOT / program, "--dry-run", *words], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1].startswith("python -m pytest")


def test_the_image_is_built_and_tried_from_files_that_are_enough_to_install_and_start(tmp_path):
    """The files that .dockerignore lets in are copied, and have the version and the command."""
    build, tried = (step["run"] for step in jobs(WORKFLOWS[0])["image"]["steps"] if "run" in step)
    recipe = (ROOT / "launch" / "Dockerfile").read_text()
    assert re.findall("--build-arg=([A-Z]+)", build) == ["EXTRA"]
    assert {"EXTRA", "COMMIT"} <= set(re.findall("^ARG ([A-Z]+)", recipe, re.MULTILINE))
    assert re.findall("^USER (.+)", recipe, re.MULTILINE) == ["1000"]
    allowed = (ROOT / "launch" / "Dockerfile.dockerignore").read_text().splitlines()
    for name in (line[1:] for line in allowed if line.startswith("!")):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "check": True}
    done = subprocess.run([sys.executable, "setup.py", "--version"], **run)
    assert done.stdout.strip() == distill_jax.__version__
    words = shlex.split(tried)[4:]
    (program,) = re.findall(r'^ENTRYPOINT \["(.+)"\]', recipe, re.MULTILINE)
    done = subprocess.run([tmp_path / program, *words, "--dry-run"], **run)
    assert done.stdout.strip() == shlex.join(["python", "-m", "distill_jax.main", *words])


def test_every_python_is_tested_with_the_lowest_and_the_newest_versions():
    (tests,) = (jobs(path) for path in WORKFLOWS if path.stem == "tests")
    assert tests.keys() == {"browser", "image", "lowest", "newest"}
    for job in (tests["lowest"], tests["newest"]):
        assert job["strategy"]["matrix"]["python"] == PYTHONS
    assert f'python_requires=">={PYTHONS[0]}"' in (ROOT / "setup.py").read_text()
    readme = (ROOT / "README.md").read_text()
    assert f"Python {PYTHONS[0]} to {PYTHONS[-1]}" in readme


def test_pre_commit_runs_one_ruff_that_the_project_allows():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"].split()[:2] for hook in hooks] == [["ruff", "check"], ["ruff", "format"]]
    (pin,) = {pin for hook in hooks for pin in hook["additional_dependencies"]}
    name, _, version = pin.partition("==")
    assert Version(version) >= max(bounds()[name])


def test_a_package_that_several_extras_need_has_one_lower_bound():
    found = bounds()
    assert {"jax", "flax", "mypy"} <= found.keys()
    assert {name: versions for name, versions in found.items() if len(versions) > 1} == {}


def test_the_lock_has_a_version_in_bounds_of_every_package_and_of_all_that_they_need():
    """One version, or one per marker of a Python or operating system."""
    locked = {}
    for line in (ROOT / "launch" / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            need = Requirement(line)
            (pin,) = need.specifier
            assert pin.operator == "=="
            locked.setdefault(canonicalize_name(need.name), []).append(Version(pin.version))
    for name, (lowest, *_) in bounds().items():
        assert min(locked[canonicalize_name(name)]) >= lowest, name
    todo, seen = [("distill_jax", "dev")], set()
    while todo:
        name, *extras = todo.pop()
        seen.add((name, *extras))
        for text in importlib.metadata.requires(name) or ():
            need = Requirement(text)
            extra = [{"extra": extra} for extra in (extras or [""])]
            if need.marker is None or any(map(need.marker.evaluate, extra)):
                assert canonicalize_name(need.name) in locked, (name, text)
                if (found := (need.name, *sorted(need.extras))) not in seen:
                    todo.append(found)
    assert len(seen) > 100


@pytest.mark.parametrize("name", ["bug", "request", "config"])
def test_the_forms_of_issues_can_be_read(name):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    fields = [entry["id"] for entry in form.get("body", ())]
    assert len(fields) == len(set(fields))
    assert name == "config" or {"name", "description", "body"} <= form.keys()


def test_an_editable_installation_works_in_the_folder_above_the_checkout(tmp_path):
    checkout = tmp_path / "distill_jax"
    (checkout / "distill_jax").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "distill_jax/__init__.py"):
        shutil.copy(ROOT / name, checkout / name)
    build = "from setuptools import build_meta; print(build_meta.build_editable('..'))"
    command = [sys.executable, "-c", build]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    site = tmp_path / "site"
    zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]).extractall(site)
    found = (
        f"import site; site.addsitedir({str(site)!r}); import distill_jax as d; print(d.__file__)"
    )
    command = [sys.executable, "-S", "-c", found]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(checkout / "distill_jax" / "__init__.py")
