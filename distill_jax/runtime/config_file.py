"""The flag --config, and messages about its file, which is the user's own code."""

import ast
import difflib
import importlib.util
import os
import pathlib
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import config_flags

from distill_jax.runtime import logging

MAX_BYTES = 2**20


def load_file(path: str | os.PathLike) -> ModuleType:
    """Imports the module of a config or sweep, FILE.py, which is the user's own code."""
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{os.fspath(path)!r} is no Python file; expected FILE.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def define_config(text: str) -> Any:
    """Defines --config with a text for its help; a bad --flagfile is read already here."""
    flags.disclaim_key_flags()  # So that --config is a key flag of the command that calls this.
    try:
        check_flagfiles(sys.argv)
        flag = config_flags.DEFINE_config_file(
            "config", None, text, lock_config=False, accept_new_attributes=True
        )
    except (flags.Error, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
    return flag


def check_flagfiles(argv: Sequence[str]) -> None:
    """Raises ValueError unless every --flagfile=FILE is a file of text."""
    for word in argv:
        name, _, file = word.partition("=")
        if name.lstrip("-") == "flagfile":
            path = pathlib.Path(file)
            if not path.is_file() or path.stat().st_size > MAX_BYTES:
                raise ValueError(
                    f"--flagfile={file[:200]} is no file of at most {MAX_BYTES:,} bytes"
                )


def config_of(argv: Sequence[str]) -> str | None:
    """Returns the file of the last --config=FILE.py:size or --config FILE.py:size, if any."""
    if "config" not in flags.FLAGS:
        return None
    given = [
        following if word.lstrip("-") == "config" else word.partition("=")[2]
        for word, following in zip(argv, (*argv[1:], ""), strict=True)
        if word.startswith("-") and word.lstrip("-").partition("=")[0] == "config"
    ]
    return given[-1].partition(":")[0] if given else None


def check_config_file(file: str) -> None:
    """Raises ValueError unless a file exists, is a .py, and compiles."""
    path = pathlib.Path(file)
    try:
        there = path.is_file()
    except ValueError:  # A zero byte in the name.
        there = False
    if not there or path.suffix != ".py":
        known = sorted(each.stem for each in pathlib.Path("configs").glob("*.py"))
        near = difflib.get_close_matches(path.stem[:100], known, n=1) or ["digits_guided"]
        problem = "is no .py file" if there else "does not exist, or is no file"
        raise ValueError(
            f"--config={file[:200]} {problem}; expected FILE.py or FILE.py:size, such as "
            f"configs/{near[0]}.py, or --config=list for a table of them"
        )
    with path.open("rb") as opened:
        content = opened.read(MAX_BYTES)
    try:
        compile(content, file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        reason = getattr(error, "msg", None) or error
        raise ValueError(f"{file}, line {line}: {reason}") from error


def listed(folder: pathlib.Path) -> str:
    """Returns the configs of a folder, what they are and their sizes, as a table.

    Raises:
      ValueError: for a folder without configs, and as check_config_file for a damaged one.
    """
    rows = []
    for path in sorted(folder.glob("*.py")):
        check_config_file(str(path))
        tree, module = ast.parse(path.read_bytes()), load_file(path)
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        checks = [node for node in calls if getattr(node.func, "id", "") == "check_size"]
        sizes: list[str] = []
        for given in (arg for node in checks for arg in node.args[1:]):
            known = given.value if isinstance(given, ast.Starred) else given
            name = getattr(known, "id", "")  # Of a table of sizes; others are constants.
            sizes += getattr(module, name) if name else [getattr(known, "value", "")]
        text = (module.__doc__ or "").partition("\n")[0]
        rows.append([str(path), text, ", ".join(sizes)])
    if not rows:
        raise ValueError(f"{folder.absolute()} has no configs; start in the project's folder")
    return logging.table(["--config", "what it trains", ":size"], rows)


def check_config_value(file: str) -> None:
    """Raises ValueError unless the parsed file returned a config."""
    value = flags.FLAGS["config"].value
    if not hasattr(value, "to_dict"):
        raise ValueError(
            f"get_config of {file} returned {type(value).__name__}; expected a ConfigDict: end it "
            "with `return config`"
        )


def explain(error: Exception, file: str) -> str | None:
    """Returns the line and text of an exception that the code of the file raised; None if not."""
    if isinstance(error, AttributeError) and "has no attribute 'get_config'" in str(error):
        return f"{file} has no get_config(): it is no config"
    frames = traceback.extract_tb(error.__traceback__)
    if not file or pathlib.Path(frames[-1].filename).resolve() != pathlib.Path(file).resolve():
        return None
    text = " ".join(str(error).split())[:300]
    return f"{file}, line {frames[-1].lineno}: {type(error).__name__}: {text}"
