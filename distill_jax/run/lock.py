"""One run per workdir: WORKDIR/lock.json names the process that writes there.

On a disk, the kernel locks the file and frees it when the process ends, in whatever way. In a
bucket, the file is created on condition that there is none. A run on another machine is taken for
dead when its file has not changed for SILENCE seconds; a living run writes the time into it.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import fsspec
from etils import epath

from distill_jax.runtime import distributed, logging
from distill_jax.runtime.files import PARTIAL, flush

FILE = "lock.json"
BEAT = 20.0  # Seconds between two signs of life.
SILENCE = 120.0  # Seconds without one, as seen from another machine.
ABANDONED = 600.0  # Age of the last one, by the clocks of two machines, that needs no waiting.
FIELDS = {
    **dict.fromkeys(("run", "host", "started", "container", "boot", "since"), str),
    **dict.fromkeys(("pid", "beat"), int),
}

_HELD: dict[tuple[int, str], "Lock"] = {}  # By process, because a fork copies this.


@contextlib.contextmanager
def hold(workdir: epath.Path) -> Iterator["Lock"]:
    """Holds the lock of a workdir, which is created if absent; a nested call gets the same lock.

    With several processes, the first one holds it for all.

    Raises:
      ValueError: if a living run holds the workdir.
    """
    key = os.getpid(), str(workdir)
    if key in _HELD:
        yield _HELD[key]
        return
    lock, fault = Lock(workdir), None
    if distributed.first():
        try:
            lock.take()
            _clean(workdir)
        except (OSError, ValueError) as error:
            fault = error
    _raise_together(fault)
    _HELD[key] = lock
    try:
        yield lock
    finally:
        del _HELD[key]
        lock.free()


class Lock:
    """The lock of a workdir, in a run of this process; see `hold`."""

    def __init__(self, workdir: epath.Path):
        self._workdir, self._path = workdir, workdir / FILE
        self._bucket = "://" in str(workdir)
        self._file: int | None = None
        self._ended = threading.Event()
        self._me = {
            "run": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "container": _container(),
            "boot": _boot(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        }

    def take(self) -> None:
        """Takes the lock; raises ValueError if a living run has it."""
        self._workdir.mkdir(parents=True, exist_ok=True)
        seen, began = None, time.monotonic()
        while (found := self._try()) is not None:
            holder, waited = _parsed(found), time.monotonic() - began
            if not found and waited < SILENCE:  # Its holder is about to write it.
                time.sleep(0.1)
                continue
            here = holder.get("boot") == self._me["boot"]
            if (here and not self._is_dead(holder)) or seen not in (None, found):
                raise ValueError(
                    f"{self._workdir} is in use: {_named(holder)} writes there ({self._path}); "
                    "stop that run first, or choose another --workdir"
                )
            if here or waited > SILENCE or time.time() - holder.get("beat", 0) > ABANDONED:
                self._seize()
                continue
            if seen is None:
                seen = found
                logging.say(
                    f"{self._workdir}: {_named(holder)} wrote there last, on another machine; "
                    f"waiting {SILENCE:.0f} s for a sign of life"
                )
            time.sleep(min(1.0, SILENCE / 10))
        threading.Thread(target=self._beat, daemon=True).start()

    def check(self) -> None:
        """Raises ValueError in all processes if the workdir is no longer this run's."""
        _raise_together(self._fault() if distributed.first() else None)

    def check_here(self) -> None:
        """Raises ValueError in the first process if the workdir is no longer this run's."""
        if distributed.first() and (fault := self._fault()):
            raise fault

    def free(self) -> None:
        """Gives the lock up."""
        self._ended.set()
        if distributed.first() and self._is_mine():
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
        if self._file is not None:
            os.close(self._file)

    def _try(self) -> bytes | None:
        """Takes the lock if nobody has it, and returns None; else the content of its file."""
        if self._is_mine():
            return None
        if self._bucket:
            return self._try_bucket()
        try:
            file, made = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
        except FileExistsError:
            file, made = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644), False
        found, free = os.read(file, 2**16), _flock(file)
        holder = _parsed(found)
        if made if free is None else free and holder.get("boot") in (None, self._me["boot"]):
            os.ftruncate(file, 0)
            os.pwrite(file, self._content(), 0)
            self._file = file
            if self._is_mine():  # Otherwise its holder removed it meanwhile.
                return None
        os.close(file)
        self._file = None
        return found

    def _try_bucket(self) -> bytes | None:
        system, name = fsspec.core.url_to_fs(str(self._path))
        try:
            system.pipe_file(name, self._content(), mode="create")
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                return system.cat_file(name)
            return b""
        return None

    def _seize(self) -> None:
        """Takes the lock of a dead run."""
        if self._bucket:
            system, name = fsspec.core.url_to_fs(str(self._path))
            system.pipe_file(name, self._content())
            time.sleep(min(2.0, SILENCE))  # Another run may do the same; the later one has it.
            return
        mine = self._path.parent / f"{FILE}.{self._me['run']}{PARTIAL}"
        file = os.open(mine, os.O_RDWR | os.O_CREAT, 0o644)
        _flock(file)
        os.pwrite(file, self._content(), 0)
        os.replace(mine, self._path)
        self._file = file

    def _content(self) -> bytes:
        """Returns the content of the file, with a length that does not change."""
        return json.dumps({**self._me, "beat": int(time.time())}).encode() + b"\n"

    def _beat(self) -> None:
        """Writes the time until the lock is given up."""
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):  # The next check says what is wrong.
                if not self._bucket and self._file is not None:
                    os.pwrite(self._file, self._content(), 0)
                elif self._is_mine():
                    self._path.write_bytes(self._content())

    def _is_mine(self) -> bool:
        """Returns whether the file at the path is this run's."""
        try:
            if self._bucket:
                system, name = fsspec.core.url_to_fs(str(self._path))
                return _parsed(system.cat_file(name)).get("run") == self._me["run"]
            return self._file is not None and os.path.samestat(
                os.fstat(self._file), os.stat(self._path)
            )
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _is_dead(self, holder: dict[str, Any]) -> bool:
        """Returns whether the holder, a process of this machine, has ended."""
        if holder["container"] != self._me["container"]:  # Its processes cannot be seen here.
            return False
        try:
            os.kill(holder["pid"], 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # It is another user's.
            return False
        return _started(holder["pid"]) != holder["started"]

    def _fault(self) -> ValueError | None:
        """Returns the error to raise if this run must not write any more."""
        if self._is_mine():
            return None
        if not self._path.exists():
            return ValueError(
                f"{self._workdir} was renamed or removed during the run, which ends and writes "
                "nothing more; start it again with the workdir's new name"
            )
        return ValueError(
            f"{self._workdir} is in use: {_named(_parsed(self._path.read_bytes()))} took it over "
            "because this run gave no sign of life; this run ends and writes nothing more"
        )


def _flock(file: int) -> bool | None:
    """Locks a file; returns False if another process has it, None if its disk has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _raise_together(fault: Exception | None) -> None:
    """Raises the first process's error, and an error in all the others."""
    if distributed.broadcast_from_first(int(fault is not None)):
        raise fault or ValueError("the first process cannot write in the workdir, as it says")


def _parsed(content: bytes) -> dict[str, Any]:
    """Returns the content of a lock's file; {} if it cannot be read."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(content)
        if isinstance(found, dict) and all(isinstance(found.get(k), t) for k, t in FIELDS.items()):
            return found
    return {}


def _named(holder: dict[str, Any]) -> str:
    """Returns the holder of a lock in words."""
    if not holder:
        return "an unknown run"
    return f"the run of process {holder['pid']} on {holder['host']} since {holder['since']}"


def _started(pid: int) -> str:
    """Returns when a process started, in ticks of the kernel; "" where that is not known."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[19]
    return ""


def _container() -> str:
    """Returns the name of the kernel for the processes that this one can see."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _boot() -> str:
    """Returns what names this machine until it boots again."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return socket.gethostname()


def _clean(workdir: epath.Path) -> None:
    """Removes what killed writes left in a workdir, and flushes the workdir's own name."""
    if "://" in str(workdir):
        return
    for name in (f"[!.]*{PARTIAL}", f"*/[!.]*{PARTIAL}"):
        for path in list(workdir.glob(name)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    flush(workdir.parent)
