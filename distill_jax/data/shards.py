"""WebDataset's shards as a listing: tars whose members are read in any order by their places."""

import functools
import io
import pathlib
import re

from distill_jax.data.decoding import ADVICE
from distill_jax.data.listing import Listing, Passed, add, listing
from distill_jax.data.tars import Member, members

RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
MAX_SHARDS = 100_000


def captioned_listing(path: str, skip_damaged: bool = False) -> Listing:
    """Lists a folder or zip of pictures, or WebDataset's tars; members are named shard.tar/name.

    Tars are a single .tar, a folder whose pictures are all in tars, or a pattern such as
    `shards/{00000..00012}.tar`.

    Args:
      path: path of the folder, zip or tar, or the pattern.
      skip_damaged: whether the rest of a tar that is damaged or cut is passed over.

    Raises:
      ValueError: for a path that is none of these, shards that are missing, and tars that are
        damaged.
    """
    root = pathlib.Path(path).expanduser().absolute()
    if not root.exists() and RANGE.search(root.name):
        return _of_shards(root.parent, _expanded(root), skip_damaged)
    if root.suffix == ".tar" and root.is_file():
        return _of_shards(root.parent, [root], skip_damaged)
    shards = sorted(path for path in root.glob("*.tar") if path.is_file())
    if shards and not (found := listing(root)).files:
        return _of_shards(root, shards, skip_damaged)
    return found if shards else listing(root)


def _expanded(pattern: pathlib.Path) -> list[pathlib.Path]:
    """Returns the paths of a pattern with one range of numbers, which must all be there."""
    low, high = RANGE.search(pattern.name).groups()  # type: ignore[union-attr]  # It has a range.
    count = int(high) - int(low) + 1
    if not 0 < count <= MAX_SHARDS:
        raise ValueError(
            f"{pattern} is a pattern of {count:,} shards; expected 1 to {MAX_SHARDS:,}, such as "
            "{00000..00012}.tar"
        )
    numbers = (f"{number:0{len(low)}d}" for number in range(int(low), int(high) + 1))
    paths = [pattern.with_name(RANGE.sub(text, pattern.name, count=1)) for text in numbers]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"{pattern} names {count:,} shards, of which {len(missing):,} are missing, such as "
            f"{missing[0].name}; add them, or correct the numbers"
        )
    return paths


def _of_shards(root: pathlib.Path, shards: list[pathlib.Path], skip_damaged: bool) -> Listing:
    """Lists the members of tars; of several pictures with one key the first is taken."""
    places: dict[str, tuple[pathlib.Path, Member]] = {}
    found = Listing(root, {}, [], [], [], Passed(), lambda name: _opened(*places[name]))
    for path in shards:
        status = path.stat()
        known, problem = _members(path, status.st_size, status.st_mtime_ns)
        if problem and not skip_damaged:
            raise ValueError(f"{problem}{ADVICE}, or pass over the rest with skip_unreadable=True")
        if problem:
            found.passed.add("damaged tars, from where they are damaged", path.name)
        for member in known:
            _add(found, places, path, member)
    keys: set[str] = set()
    for name in list(found.files):
        if (key := name.rpartition(".")[0]) in keys:
            found.passed.add("second pictures of a key", name)
            del found.files[name]
        keys.add(key)
    return found._replace(files=dict(sorted(found.files.items())))


# A run builds its dataset several times, and a large one has millions of members.
@functools.lru_cache(maxsize=MAX_SHARDS)
def _members(path: pathlib.Path, size: int, changed: int) -> tuple[tuple[Member, ...], str]:
    """Returns the members of a tar of this size and time, and what ended their list early."""
    found: list[Member] = []
    try:
        for member in members(path):
            found.append(member)
    except ValueError as error:
        return tuple(found), str(error)
    return tuple(found), ""


def _add(
    found: Listing,
    places: dict[str, tuple[pathlib.Path, Member]],
    path: pathlib.Path,
    member: Member,
) -> None:
    """Adds a member of a tar to a listing, unless it is passed over; hidden names are ignored."""
    name = member.name.removeprefix("./")
    whole, parts = f"{path.name}/{name}", name.split("/")
    suffix = parts[-1].partition(".")[2].lower()
    reason = member.reason
    if "" in parts or ".." in parts:
        reason = "with names outside the tar"
    elif any(part.startswith(".") for part in parts):
        return
    elif whole in places:
        reason = "named twice in a tar"
    elif not reason and "." in suffix:  # Another part of an example of WebDataset.
        reason = f".{suffix} files"
    if reason:
        found.passed.add(reason, whole)
        return
    places[whole] = path, member
    if suffix == "json":
        found.texts.append(whole)
    else:
        add(found, whole, member.size)


def _opened(path: pathlib.Path, member: Member) -> io.BytesIO:
    """Returns the content of a member; several threads may do so at the same time."""
    with path.open("rb") as file:
        file.seek(member.start)
        return io.BytesIO(file.read(member.size))
