"""The start and end of a command line: users' errors are one message, bugs a traceback."""

import os
import pathlib
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
from absl import app, flags, logging

from distill_jax.runtime import distributed
from distill_jax.runtime.config_file import (
    check_config_file,
    check_config_value,
    check_flagfiles,
    config_of,
    explain,
    listed,
)

PACKAGE = str(pathlib.Path(__file__).parents[1])
TRANSIENT = (ConnectionAbortedError, ConnectionRefusedError, ConnectionResetError, TimeoutError)
FLAG_ERRORS = flags.Error, ArithmeticError, AttributeError, KeyError, TypeError, ValueError, OSError
NETWORK = ("requests", "aiohttp")
# Characters that a terminal may obey, or that change the order of those after them.
CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
MAX_MESSAGE = 20_000  # Characters; a list of the changed keys of a config is long.


def run_app(main: Callable[..., int | None], *names: str) -> None:
    """Parses the flags, runs a command line, and exits with its code.

    An error in the flags, an exception that a line of this package raises, and an OSError are
    messages for the user. Only the message is printed, and the exit code is 1: starting the same
    command again is useless. Any other exception, such as the loss of another process or of the
    network, prints its traceback, with exit code 70.

    Args:
      main: function of the command, which is called with the arguments that are not flags.
      *names: names of those arguments; all are required. A last name with "..." is one or more.
    """

    def run(argv: Sequence[str]) -> None:
        sys.unraisablehook = _unraisable
        if not flags.FLAGS["verbosity"].present:
            # Otherwise the storage library logs every file, and every exception that it raises.
            logging.set_verbosity(logging.FATAL)
        try:
            code = main(*_arguments(argv[1:], names))
        except Exception as error:
            if isinstance(error, ImportError) and "gcsfs" in str(error):
                _end(ValueError('paths gs:// need the extra "gcs": pip install -e ".[gcs]"'))
            mistake = isinstance(error, (ValueError, KeyError, OSError)) and is_message(error)
            _end(error, 1 if mistake else 70)
        sys.exit(code)

    app.run(run, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags, and runs the file of --config; returns the other words."""
    file = config_of(argv)
    try:
        check_flagfiles(argv)
        if file == "list":
            print(listed(pathlib.Path("configs")))
            sys.exit(0)
        if file is not None:
            check_config_file(file)
        rest = flags.FLAGS([_underscored(argument) for argument in argv])
        if file is not None:
            check_config_value(file)
        return rest
    except Exception as error:
        if file is not None and (text := explain(error, file)):
            error = ValueError(text)
        _end(error, 1 if isinstance(error, FLAG_ERRORS) else 70)


def needed(name: str, what: str = ": the directory of a finished run") -> Any:
    """Returns the value of a required flag; raises ValueError, with `what`, if it is missing."""
    if flags.FLAGS[name].value is None:
        raise ValueError(f"--{name} is needed{what}")
    return flags.FLAGS[name].value


def numbers(name: str, kind: type = float) -> list:
    """Returns the numbers of a list flag, or [] if the flag is not given.

    Raises:
      ValueError: for an entry that is not a number of that kind, float or int.
    """
    values = flags.FLAGS[name].value or []
    try:
        return [kind(value) for value in values]
    except ValueError as error:
        whole = "whole " if kind is int else ""
        raise ValueError(f"--{name}={','.join(values)} is no list of {whole}numbers") from error


def _unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Hides the errors of files that report to an event loop which is already closed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _underscored(argument: str) -> str:
    """Returns a flag with underscores in its name, as absl requires: --source_label=3."""
    name, separator, value = argument.partition("=")
    if not name.startswith("--"):
        return argument
    return f"--{name[2:].replace('-', '_')}{separator}{value}"


def _arguments(given: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    """Returns the arguments after checking that their number is the number of names."""
    if len(given) > len(names) and not (names and names[-1].endswith("...")):
        rest = f"{' '.join(names)} and --flags are all" if names else "everything is a --flag"
        raise ValueError(f"unexpected argument {given[len(names)]!r}; {rest}")
    if len(given) < len(names):
        raise ValueError(f"{names[len(given)]} is missing; expected {' '.join(names)}")
    return given


def is_message(error: Exception) -> bool:
    """Returns whether an exception is a message for the user: an OSError, or from this package.

    Connection errors are not user mistakes; a restart may succeed.
    """
    if isinstance(error, OSError):
        return not (isinstance(error, TRANSIENT) or type(error).__module__.startswith(NETWORK))
    last = traceback.extract_tb(error.__traceback__)[-1]
    return last.filename.startswith(PACKAGE) and (last.line or "raise").startswith("raise")


def message(error: Exception) -> str:
    """Returns the text of an exception, or of the exception that the config library wrapped."""
    if isinstance(error, (KeyError, AttributeError)) and error.args:
        inner = error.args[0]
        if isinstance(inner, Exception):
            return message(inner)
        text = str(inner)
        return f"unknown key {text}".replace("\n", ". ") if text.startswith("'") else text
    return _without_traceback(str(error))


def cause_of(error: BaseException) -> str:
    """Returns the first line of an exception's text, of at most 300 characters, for a message."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return (text.strip().partition("\n")[0] or type(error).__name__)[:300]


def _without_traceback(text: str) -> str:
    """Reduces a config file's traceback to its message if this package raised the exception."""
    lines = [line for line in text.splitlines() if line.strip()]
    frames = [line for line in lines if line.lstrip().startswith('File "')]
    if frames and frames[-1].lstrip().startswith(f'File "{PACKAGE}'):
        return lines[-1].partition(": ")[2]
    return text


def _end(error: Exception, code: int = 1) -> NoReturn:
    """Prints the message (code 1) or the traceback, and exits with the code."""
    warnings.simplefilter("ignore")  # Warnings about resources that the error left open.
    if code == 1:
        text = CONTROL.sub(lambda found: ascii(found[0])[1:-1], message(error))
        sys.stderr.write(f"error: {text[:MAX_MESSAGE]}\n")  # One write: other threads write too.
    else:
        traceback.print_exception(error)
    if jax.distributed.is_initialized():
        # An orderly exit would wait for the other processes, and they wait for this one. When the
        # first process exits, JAX ends the others with another exit code. The first therefore
        # waits until the others have found the same error.
        if code == 1 and distributed.first():
            time.sleep(3)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
