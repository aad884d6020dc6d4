"""Lists the commands: python -m distill_jax."""

import ast
import pathlib

from distill_jax.runtime import logging

COMMANDS = (
    "main",
    "cache",
    "sample",
    "evaluate",
    "reference",
    "report",
    "edit",
    "sweep",
    "spectrum",
    "export",
    "demo",
    "posthoc",
    "mirror",
    "teachers",
)


def summary(command: str) -> str:
    """Returns the first line of a command's docstring without importing the command."""
    folder = pathlib.Path(__file__).parent / command
    path = folder / "__main__.py" if folder.is_dir() else folder.with_suffix(".py")
    return str(ast.get_docstring(ast.parse(path.read_text()))).splitlines()[0]


def main() -> None:
    """Prints every command and its summary."""
    logging.show("python -m distill_jax.COMMAND --help shows the flags of a command:\n")
    for command in COMMANDS:
        logging.show(f"  {command:<10}{summary(command)}")


if __name__ == "__main__":
    main()
