"""Parses command lines as their programs do: `python -m tests.parsers < [[program, words], ...]`.

A program is a module of the package, or a file of benchmarks/. Each command runs up to the line
that parses its words, in a forked process that shares the imports of most programs. Prints JSON:
[[program, words, message], ...] of the refused commands.
"""

import argparse
import json
import os
import pathlib
import runpy
import sys

from absl import app, flags

from distill_jax.config import base
from distill_jax.evaluation import report  # noqa: F401 - imported once, before the forks.
from distill_jax.run import costs, pipeline, validation  # noqa: F401 - as above.
from distill_jax.runtime import app as ours

ROOT = pathlib.Path(__file__).parent.parent
known_of = argparse.ArgumentParser.parse_known_args


class Taken(BaseException):
    """The program has parsed its words, and its work would begin now."""


def run_app(_, *names):
    """Parses flags as the commands of the package do."""
    sys.argv = [sys.argv[0], *map(ours._underscored, sys.argv[1:])]
    if "--config=list" in sys.argv:  # It ends there.
        raise Taken
    ours._arguments(flags.FLAGS(sys.argv)[1:], names)
    if "config" in flags.FLAGS and flags.FLAGS.config is not None:
        config = flags.FLAGS.config
        _ = config.stages  # Raises for a missing file, which is read only here.
        validation.check_keys(config, base(), "config")
        validation.check_config(config)
    raise Taken


def parse_args(parser):
    """Parses arguments as argparse does."""
    if rest := known_of(parser)[1]:
        raise ValueError(f"unrecognized arguments {rest}")
    raise Taken


def parse_known_args(parser):
    """Parses known arguments; the others are for the runs that the program starts."""
    known, rest = known_of(parser)
    flags.FLAGS.unparse_flags()
    run("distill_jax.main", [f"--config={known.config}", *rest])


def error(_, message):
    """Raises the error that a parser of argparse reports."""
    raise ValueError(message)


def run(program, words):
    """Raises Taken if the program accepts the words, and another exception if it does not."""
    sys.argv, path = [program, *words], ROOT / program
    if not path.is_file():
        runpy.run_module(program, run_name="__main__")
    elif "argparse" in path.read_text() or "absl" in path.read_text():
        sys.path.insert(0, str(path.parent))
        runpy.run_path(str(path), run_name="__main__")
    elif words:
        raise ValueError("takes no words")


def refusal(program, words):
    """Returns the program's message if it refuses the command, "" if it accepts it."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        try:
            run(program, words)
        except Taken:
            pass
        except BaseException as error:
            os.write(writes, f"{type(error).__name__}: {error}"[-4000:].encode())
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as file:
        message = file.read()
    os.waitpid(child, 0)
    return message


if __name__ == "__main__":
    ours.run_app, app.run = run_app, run_app
    argparse.ArgumentParser.error = error
    argparse.ArgumentParser.parse_args = parse_args
    argparse.ArgumentParser.parse_known_args = parse_known_args
    messages = [(*command, refusal(*command)) for command in json.load(sys.stdin)]
    json.dump([each for each in messages if each[2]], sys.stdout)
