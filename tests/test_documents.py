"""Tests of the documents: programs accept the commands in them, and the files exist."""

import ast
import importlib.util
import json
import re
import shlex
import subprocess
import sys

import pytest

from tests.test_launch import SOURCED, calls, clouds, environment, nothing, script  # noqa: F401 - fixtures.
from tests.toys import ROOT

DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "examples").glob("*.py"),
    *(ROOT / "launch").iterdir(),
    *(ROOT / "notebooks").glob("*.ipynb"),
    *(ROOT / "benchmarks").glob("*.py"),
    *(ROOT / "configs").rglob("*.py"),
    *(ROOT / "distill_jax").rglob("*.py"),
]
COMMAND = re.compile(
    r"""(?<![\w/.])(?P<variables>(?:[A-Z_]+=\S+\ )*)
    (?P<program>python\ -m\ (?:distill_jax|pytest)[\w.]*|python\ benchmarks/\w+\.py|launch/\w+\.sh)
    (?P<words>(?:\ +(?:[^\s#;&|`'"()<>]+=)?(?:"[^"]*"|'[^']*')|\ +[^\s#;&|`'"()<>]+)*)""",
    re.VERBOSE,
)
NAMED = re.compile(r"(?<![\w/.-])(?:launch|configs|docs|benchmarks|notebooks|tests)/[\w/]+\.\w+")


def text_of(path):
    """Returns the text of a document: for code the docstring, for a script its usage comment."""
    text = path.read_text()
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    elif path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    elif path.parent.name == "launch":
        text = "\n".join(line[4:] for line in text.splitlines() if line.startswith("#   "))
    return re.sub(r"\\\n *", "", text)


def commands_of(text):
    """Yields (variables, program, words) of every command in a text.

    Two spaces end a command, because a remark follows. Placeholders such as "--config=..." and
    "--config=FILE.py" are left out, and "COMMAND..." is one command. FILE.py:DIR of a folder is
    FILE.py:full.
    """
    for found in COMMAND.finditer(text):
        words = shlex.split(re.split(r"  (?!-)", found["words"])[0])
        words = [
            word.removesuffix("...").replace(".py:DIR", ".py:full")
            for word in words
            if not word.endswith(("=...", "=FILE.py"))
        ]
        variables = [item.partition("=") for item in found["variables"].split()]
        program = found["program"].split()[-1].rstrip(".")
        given = {name: value for name, _, value in variables if value != "..."}
        yield given, program, [word for word in words if word != "--help"]


COMMANDS = [
    (path.relative_to(ROOT), *command)
    for path in DOCUMENTS
    for command in commands_of(text_of(path))
]


def refused(commands):
    """Returns [program, words, message] of the commands that tests.parsers refuses."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.parsers"],
        input=json.dumps(commands),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_commands_are_found_in_every_kind_of_document():
    assert len(COMMANDS) > 100
    kinds = {(path.parts[0], path.suffix) for path, *_ in COMMANDS}
    folders = [("benchmarks", ".py"), ("configs", ".py"), ("distill_jax", ".py"), ("docs", ".md")]
    assert kinds >= {*folders, ("launch", ".sh"), ("notebooks", ".ipynb"), ("README.md", ".md")}
    text = "`A=1 launch/slurm.sh -p x`, python -m distill_jax.main --a=...  # why\n"
    text += 'python -m distill_jax.sample --prompt="a cat" --w=2\n'
    text += "python benchmarks/kill.py --each=5 \\\n  --seed=5    seconds"
    assert list(commands_of(re.sub(r"\\\n *", "", text))) == [
        ({"A": "1"}, "launch/slurm.sh", ["-p", "x"]),
        ({}, "distill_jax.main", []),
        ({}, "distill_jax.sample", ["--prompt=a cat", "--w=2"]),
        ({}, "benchmarks/kill.py", ["--each=5", "--seed=5"]),
    ]


def test_every_command_of_the_documents_is_taken_by_its_program(nothing):  # noqa: F811 - the fixture.
    """Launchers are called as dry runs; the training command must accept what they would start."""
    parsed = {}
    for path, variables, program, words in COMMANDS:
        if program.startswith("launch/"):
            if program.endswith(SOURCED):
                continue
            chosen = environment(nothing, **(variables | {"ALLOW_MY": "1"}))
            done = script(program.removeprefix("launch/"), "--dry-run", *words, env=chosen)
            assert (done.returncode, done.stderr) == (0, ""), (path, program, words)
            for _, starts, given in commands_of(done.stdout):
                if starts in ("distill_jax.main", "launch/local.sh"):
                    parsed["distill_jax.main", *given] = path
        elif program.startswith("distill_jax") and not words:
            assert importlib.util.find_spec(program), (path, program)  # A program's name.
        elif program != "pytest":
            parsed[program, *words] = path
    assert calls(nothing) == []
    assert len({program for program, *_ in parsed}) > 15
    assert refused([(program, words) for program, *words in parsed]) == []


def test_every_variable_in_the_page_about_launchers_is_one_of_theirs():
    text = (ROOT / "docs" / "scale.md").read_text()
    named = set(re.findall(r"[`\s\"]([A-Z][A-Z_]{2,})(?==|`)", text)) - {"JOB"}
    assert named >= {"WORKDIR", "ALLOW_DIRTY", "MAX_SECONDS", "DOWN_AFTER_MISTAKE", "EXTRA"}
    scripts = "\n".join(path.read_text() for path in (ROOT / "launch").iterdir())
    foreign = {name for name in named if name.startswith(("JAX_", "XLA_", "LIBTPU_"))}
    read = set(re.findall(r"\$\{?([A-Z_]+)", scripts))
    assert named - foreign <= read


def test_every_test_command_of_the_documents_is_taken_by_pytest(pytestconfig):
    tests = [words for _, _, program, words in COMMANDS if program in ("pytest", "launch/test.sh")]
    assert len(tests) > 3
    for words in tests:
        options = [word for word in words if word != "--dry-run"]
        known, unknown = pytestconfig._parser.parse_known_and_unknown_args(options)
        assert unknown == []
        assert all((ROOT / path).exists() for path in known.file_or_dir), words


WRONG = [
    ("distill_jax.main", ["--config=configs/digits_guided.py:smok"], "unknown size 'smok'"),
    ("distill_jax.main", ["--config=configs/digits_guided.py", "--config.batch_sise=8"], "sise"),
    ("distill_jax.main", ["--config=configs/digits.py"], "No such file"),
    ("distill_jax.main", ["--confg=configs/digits_guided.py"], "confg"),
    ("distill_jax.evaluate", ["--student=runs/a", "--num=many"], "num=many"),
    ("distill_jax.teachers", ["edm", "--out=a"], "SOURCE is missing"),
    ("benchmarks/seeds.py", ["--config=digits_swd", "--seed"], "--seed"),
    ("benchmarks/kill.py", ["--config.kep=3"], "kep"),
    ("benchmarks/scaling.py", ["--topologi=v5e:2x4"], "topologi"),
    ("benchmarks/corrupt.py", ["--all"], "takes no words"),
]


def test_a_wrong_command_is_not_taken():
    found = refused([wrong[:2] for wrong in WRONG])
    assert [(program, words) for program, words, _ in found] == [wrong[:2] for wrong in WRONG]
    for (*_, message), (*_, part) in zip(found, WRONG, strict=True):
        assert part in message


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_document_names_exist(path):
    for name in NAMED.findall(text_of(path)):
        assert (ROOT / name).exists(), name
