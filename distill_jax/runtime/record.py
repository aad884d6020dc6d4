"""The record of what ran: commit, versions of packages, command line, host and devices."""

import datetime
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import jax

ROOT = pathlib.Path(__file__).parents[2]
UNKNOWN = "unknown"


@functools.cache
def commit(root: pathlib.Path = ROOT) -> str:
    """Returns the commit of a checkout, with " + changes" if files differ from it.

    DISTILL_JAX_COMMIT has precedence: launchers set it where the files have no git history. An
    archive that git or its host made has the commit in launch/commit.txt. The last resort is
    "unknown".
    """
    archived = root / "launch" / "commit.txt"
    if given := os.environ.get("DISTILL_JAX_COMMIT"):
        return given
    if (root / ".git").exists():
        try:
            changed = _git(root, "status", "--porcelain")
            return _git(root, "rev-parse", "HEAD") + (" + changes" if changed else "")
        except (OSError, subprocess.SubprocessError):
            return UNKNOWN
    name = archived.read_text().strip() if archived.is_file() else "$"
    return UNKNOWN if "$" in name else f"{name} (an archive, perhaps with changes)"


def short_commit() -> str:
    """Returns the commit with a hash of 12 digits."""
    name, _, rest = commit().partition(" ")
    return f"{name[:12]} {rest}".strip()


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Returns the installed versions of packages."""
    return {name: importlib.metadata.version(name) for name in packages}


def lock(root: pathlib.Path = ROOT) -> str:
    """Returns the SHA-256 of launch/constraints.txt, or "none" for an installed package."""
    path = root / "launch" / "constraints.txt"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"


def start() -> dict[str, Any]:
    """Returns the record of this start, as plain data; JAX must have joined its processes."""
    installed = {each.name: each.version for each in importlib.metadata.distributions()}
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "commit": commit(),
        "constraints": lock(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "processes": jax.process_count(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": dict(sorted(installed.items(), key=lambda item: item[0].lower())),
    }


def _git(root: pathlib.Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.strip()
