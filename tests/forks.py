"""Runs commands of the package in forks of one process, so that each saves the imports.

Tests call `run`; `python -m tests.forks` is the process that forks.
"""

import atexit
import functools
import gc
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import traceback
import warnings

from tests.toys import ROOT


@functools.cache
def _server():
    """Starts the process that forks, without a backend of JAX; it ends with this process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forks"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def end():
        process.stdin.close()
        process.stdout.close()
        process.wait()

    atexit.register(end)
    return process


def run(module, *flags, folder=ROOT):
    """Runs `python -m MODULE *flags` in a folder; returns its exit code, stdout and stderr."""
    server = _server()
    with tempfile.TemporaryDirectory() as temporary:
        paths = [pathlib.Path(temporary, name) for name in ("stdout", "stderr")]
        command = module, [*map(str, flags)], [*map(str, paths)], str(folder)
        server.stdin.write(json.dumps(command) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return code, *(path.read_text() for path in paths)


def _child(module, flags, paths, folder):
    """Runs a command in this process with its output in the files; returns its exit code."""
    os.chdir(folder)
    for path, number in zip(paths, (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.argv, code = [module, *flags], 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _serve():
    from distill_jax.evaluation import compare  # noqa: F401 - imported once, before the forks.
    from distill_jax.run import costs, pipeline  # noqa: F401 - as above.

    gc.collect()
    gc.freeze()  # The collector of a fork passes over what the imports left: a tenth of its time.
    # A fork has one thread, and starts others only later.
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os._exit(_child(*json.loads(line)))
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
