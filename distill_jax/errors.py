"""How a command line ends: a user's mistake is one message, a bug keeps its traceback."""

import pathlib
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import app, flags, logging

PACKAGE = str(pathlib.Path(__file__).parent)


def friendly(main: Callable[[Sequence[str]], int | None]) -> int:
    """Runs a command line and returns its exit code.

    An exception raised by a line of this package is a message for the user, and so is every
    OSError: it is printed alone, with exit code 1. Any other exception is a bug and propagates.
    """

    def guarded(argv: Sequence[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # The storage library reports every file.
        try:
            code = main(argv)
        except (ValueError, KeyError, OSError) as error:
            if not is_message(error):
                raise
            print(f"error: {message(error)}", file=sys.stderr)
            code = 1
        sys.exit(code)

    return app.run(guarded)


def is_message(error: Exception) -> bool:
    """Whether the text of an exception is meant for the user."""
    if isinstance(error, OSError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].filename.startswith(PACKAGE)


def message(error: Exception) -> str:
    """The text of an exception; str(KeyError) would quote it."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
