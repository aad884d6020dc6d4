"""Tests of the architecture: imports between folders, forbidden imports, and sizes of files."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "distill_jax"
# From the top. A command or folder may import from lines below, and a folder from itself.
LINES = [
    {
        *("main", "cache", "sample", "evaluate", "reference", "report", "edit", "sweep"),
        *("spectrum", "export", "demo", "posthoc", "mirror"),
    },
    {"run"},
    {"evaluation"},
    {"teachers"},
    {"training", "sampling"},
    {"methods", "models", "data", "metrics"},
    {"diffusion", "storage"},
    {"runtime"},
    {"typing"},
]
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))  # Including the sweeps.
SHARED = ("base", "checks", "matching", "paths")  # Files of methods/ that methods may import.
FORBIDDEN = {"tensorflow", "torch", "tensorflow_probability"}


def layer(name):
    return next(i for i, line in enumerate(LINES) if name in line)


def unit(path):
    """Returns the name in LINES that a file belongs to; a __main__ is a command."""
    if path.name == "__main__.py":
        return "main"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Yields every module that a file imports, at any place."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module in ("distill_jax", "distill_jax.methods"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path):
    names = (name for name in imports(path) if name.startswith("distill_jax."))
    return {name.split(".")[1] for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_below(path):
    if unit(path) == "config":
        assert ours(path) <= {"config"}
        return
    for other in ours(path) - {unit(path), "config"}:
        assert layer(other) > layer(unit(path)), f"{path} imports {other}"


def test_few_files_import_the_config_functions():
    """They are the plan, the defaults of a workdir's config, and the published networks."""
    users = [path.name for path in FILES if "config" in ours(path) and unit(path) != "config"]
    assert sorted(users) == ["claim.py", "google_research.py", "plan.py"]


def reads_of_a_config(tree):
    """Yields the keys that are read from a `config`: config.key, run.config.key, config["key"]."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Subscript)):
            name = getattr(node.value, "id", getattr(node.value, "attr", ""))
            jax_s = isinstance(node.value, ast.Attribute) and ast.unparse(node.value.value) == "jax"
            if name == "config" and not jax_s:
                yield ast.unparse(node)


@pytest.mark.parametrize(
    ("text", "count"),
    [("run.config.seed", 1), ("config['data']", 1), ("values.config.data.name", 1)]
    + [("jax.config.jax_platforms", 0), ("f(config)", 0), ("run.config", 0)],
)
def test_reads_of_a_config_are_found(text, count):
    assert len(list(reads_of_a_config(ast.parse(text)))) == count


def test_only_run_and_the_commands_read_keys_of_a_config():
    """Exceptions are the dataset of --config, and the published network that a config names."""
    others = [path for path in FILES if unit(path) != "config"]
    readers = {path for path in others if any(reads_of_a_config(ast.parse(path.read_text())))}
    below = {path for path in readers if layer(unit(path)) > layer("run")}
    names = {str(path.relative_to(PACKAGE)) for path in below}
    assert names == {"evaluation/chosen_data.py", "teachers/base.py"}
    assert {unit(path) for path in readers} >= {"run", "main"}
    holders = {unit(path) for path in others if "ml_collections" in set(imports(path))}
    assert holders == {"run", "sweep", "runtime"}  # The last defines --config.


def test_methods_do_not_import_each_other():
    for path in (PACKAGE / "methods").glob("*.py"):
        if path.name not in ("__init__.py", "base.py", "checks.py"):
            within = {name for name in imports(path) if name.startswith("distill_jax.methods")}
            within.discard("distill_jax.methods")
            assert within <= {f"distill_jax.methods.{name}" for name in SHARED}


def test_only_models_import_flax():
    users = {
        unit(path) for path in FILES if any(name.split(".")[0] == "flax" for name in imports(path))
    }
    assert users == {"models"}


def test_nothing_imports_tensorflow_or_torch():
    for path in [*FILES, *CONFIGS]:
        assert not {name.split(".")[0] for name in imports(path)} & FORBIDDEN


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_import_nothing_but_the_config_functions(path):
    assert set(imports(path)) == {"distill_jax.config"}
    assert path.read_text().count("\n") <= 60


def functions(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node) or ""
            yield node, node.end_lineno - node.lineno + 1 - docstring.count("\n")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_functions_and_signatures_stay_small(path):
    papers = path.parent.name == "methods" and path.stem not in SHARED
    limit = 170 if papers else 350
    assert path.read_text().count("\n") <= limit
    for node, length in functions(path):
        assert length <= 60, node.name
        count = len(node.args.args) + len(node.args.kwonlyargs)
        count -= bool(node.args.args) and node.args.args[0].arg in ("self", "cls")
        assert count <= 7, node.name


def test_the_top_has_few_files_and_every_folder_has_a_docstring():
    assert len(list(PACKAGE.glob("*.py"))) <= 16
    for folder in {path.parent for path in FILES} - {PACKAGE}:
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert docstring.endswith("."), folder
        assert folder.name in {"config"}.union(*LINES), folder


def test_the_tests_mirror_the_package():
    there = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    for path in (ROOT / "tests").iterdir():
        assert not path.is_dir() or path.name in there | {"__pycache__"}, path
