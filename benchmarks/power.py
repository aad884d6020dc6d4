"""Records what a process flushes to the disk, and gives what a power cut would leave at any moment.

A cut keeps the content of a file as it was when the process last flushed it, and nothing of a file
that it never flushed. Of names there are two records. In `ordered`, the file system writes changes
of names in their order, as ext4 and XFS do. In `strict`, a folder has the names that it had when
it was last flushed itself.

Flushes by libraries in C++ are not seen, so that the record is the stricter.
"""

import contextlib
import os
import pathlib
import stat
import sys
import threading

# Events after which something else is on the disk than before.
EVENTS = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")


class Record:
    """The moments of a process at which a power cut leaves something new in a folder.

    Attributes:
      cuts: a cut per moment: its name, and the content of all files by path, of folders None.
    """

    def __init__(self, folder):
        self._folder, self._lock = pathlib.Path(folder), threading.RLock()
        self._inside, self._fsync = threading.local(), os.fsync
        self._contents, self._names, self._open = {}, {}, {}
        self._seen, self.cuts, self._on = {}, [], False

    @contextlib.contextmanager
    def recording(self):
        """Records within the context; the audit hook stays, and does nothing afterwards."""
        self._on = True
        sys.addaudithook(self._heard)
        os.fsync = self._flushed
        try:
            yield self
        finally:
            os.fsync, self._on = self._fsync, False
            for file in self._open.values():
                os.close(file)

    def _heard(self, event, arguments):
        if self._on and event in EVENTS and not getattr(self._inside, "hook", False):
            written = event != "open" or "r" not in (arguments[1] or "r")
            if written and str(arguments[0]).startswith(str(self._folder)):
                self._cut(event)

    def _flushed(self, file):
        self._fsync(file)
        with self._lock, self._quiet():
            status = os.fstat(file)
            if status.st_ino not in self._open:  # While it is open, no other file gets its number.
                self._open[status.st_ino] = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
            file = self._open[status.st_ino]
            if stat.S_ISDIR(status.st_mode):
                with os.scandir(file) as entries:
                    self._names[status.st_ino] = {e.name: e.inode() for e in entries}
            else:
                self._contents[status.st_ino] = os.pread(file, status.st_size, 0)
        self._cut("fsync")

    @contextlib.contextmanager
    def _quiet(self):
        self._inside.hook = True
        try:
            yield
        finally:
            self._inside.hook = False

    def _cut(self, event):
        with self._lock, self._quiet():
            for kind, found in (("ordered", self._ordered()), ("strict", self._strict())):
                if self._seen.get(kind) != found:
                    self._seen[kind] = found
                    self.cuts.append((f"{kind} {len(self.cuts)} {event}", found))

    def _ordered(self):
        """Returns the names of now, with the contents that were flushed."""
        found = {}
        for path in sorted(self._folder.rglob("*")):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                known = self._contents.get(status.st_ino, b"")
                folder = stat.S_ISDIR(status.st_mode)
                found[str(path.relative_to(self._folder))] = None if folder else known
        return found

    def _strict(self):
        """Returns the names that were flushed with their folder, with the flushed contents."""
        found, folders = {}, [("", self._folder.stat().st_ino)]
        while folders:
            above, number = folders.pop()
            for name, inside in self._names.get(number, {}).items():
                path = f"{above}{name}"
                if inside in self._names:
                    folders.append((f"{path}/", inside))
                found[path] = None if inside in self._names else self._contents.get(inside, b"")
        return found


def write(cut, folder):
    """Writes what a cut leaves into an empty folder."""
    for name, content in sorted(cut.items()):
        path = pathlib.Path(folder, name)
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
