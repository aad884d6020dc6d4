"""The cache of a run: latents of all training images, and all captions encoded, on disk."""

import dataclasses
import functools
import json
import zlib
from collections.abc import Mapping
from typing import Any

from etils import epath

from distill_jax.data.base import Encodable
from distill_jax.data.encoded import Cache, Encoded, all_captions, latents_dtype, texts_dtype
from distill_jax.data.records import Shards
from distill_jax.run.data import PATHS, record
from distill_jax.run.fits import CodecFit, ConditionerFit
from distill_jax.runtime import distributed
from distill_jax.runtime.files import absolute, read_json, write_json
from distill_jax.runtime.sharding import Layout
from distill_jax.runtime.text import short
from distill_jax.storage import checkpoint

FILE, FORMAT = "index.json", 1
DTYPES = ("float32", "float16")  # Of cached latents and tokens; float16 halves the room.
NONE = "none"  # The path of no cache.
COMMAND = "python -m distill_jax.cache --config=FILE --out=DIR"
# What a cache is of, by key of its index, in the words of messages.
KINDS = {
    "data": "other data",
    "codec": "another codec",
    "conditioner": "another text encoder",
    "dtype": "another dtype",
    "records": "other sizes",
    "format": "another format",
}


@dataclasses.dataclass(frozen=True)
class CachePlan:
    """The content of a cache, and the means to make it.

    Attributes:
      directory: the directory of the cache.
      own: whether it is this run's own, which fills it; another is only read.
      dtype: an entry of DTYPES.
      data: the config's data.
      dataset: the dataset without a cache.
      codec: the finished codec; None for pixels.
      conditioner: the finished text encoder; None for data without captions.
      layout: layout of the devices that encode.
      batch: images in a step, over all devices.
    """

    directory: epath.Path
    own: bool
    dtype: str
    data: Mapping[str, Any]
    dataset: Encoded
    codec: CodecFit | None
    conditioner: ConditionerFit | None
    layout: Layout
    batch: int

    @functools.cached_property
    def source(self) -> Encodable | None:
        """The dataset of the images to encode; None if there are none to encode once."""
        source = self.dataset.source
        return source if self.codec and isinstance(source, Encodable) else None

    @functools.cached_property
    def captions(self) -> list[str]:
        """The captions to encode."""
        return all_captions(self.dataset.source) if self.conditioner else []

    @functools.cached_property
    def shards(self) -> dict[str, Shards]:
        """The shards of latents and texts, without those that there are not."""
        spec, found = self.dataset.spec, {}
        if self.source is not None:
            kind = latents_dtype(self.dataset.stored, 1 + self.source.flip, self.dtype)
            found["latents"] = kind, self.source.num_examples
        if self.captions:
            found["texts"] = texts_dtype(spec.null, self.dtype), len(self.captions)
        return {
            name: Shards(self.directory / name, count, kind)
            for name, (kind, count) in found.items()
        }

    def show(self) -> str:
        """Returns the line of a plan; it reads no data."""
        kept = [name for name, fit in (("latents", self.codec), ("texts", self.conditioner)) if fit]
        return f"cache: {' and '.join(kept)} as {self.dtype} in {self.directory}"

    def facts(self) -> dict[str, Any]:
        """Returns what the cache is of, as in its index: data, codec, text encoder and sizes."""
        options = {key: value for key, value in self.data.items() if key not in PATHS}
        digest = zlib.crc32("\0".join(self.captions).encode("utf-8", "surrogateescape"))
        known = {"options": options, "texts": digest, **record(self.dataset)}
        facts = {
            "format": FORMAT,
            "data": known,
            "codec": self.codec and checkpoint.fingerprint(self.codec.final),
            "conditioner": self.conditioner and checkpoint.fingerprint(self.conditioner.final),
            "dtype": self.dtype,
            "records": {
                name: {"count": part.count, "fields": str(part.dtype.descr)}
                for name, part in self.shards.items()
            },
        }
        found: dict[str, Any] = json.loads(json.dumps(facts))  # Tuples become lists.
        return found

    def read(self) -> Cache:
        """Opens the finished cache; raises ValueError for shards that cannot be read."""
        found = {name: part.read() for name, part in self.shards.items()}
        numbers = {caption: i for i, caption in enumerate(self.captions)}
        return Cache(found.get("latents"), found.get("texts"), numbers)

    def check(self) -> bool:
        """Returns whether the index says that the cache is finished.

        Raises:
          ValueError: for the cache of another codec, text encoder, dataset or dtype, and for one
            that is damaged; for one that this run does not fill, also if it is not finished.
        """
        path = self.directory / FILE
        if self.own and not path.exists():
            return False
        then = f"move {self.directory} away, and the run makes another"
        if not self.own:
            then = f"name the codec and conditioner of that cache, or make another: {COMMAND}"
        try:
            found, expected = read_json(path), self.facts()
        except ValueError as error:
            raise ValueError(f"{error}; {then}") from error
        for key in (key for key in expected if found.get(key) != expected[key]):
            there, here = short(str(found.get(key)), 300), short(str(expected[key]), 300)
            raise ValueError(
                f"{self.directory} is a cache of {KINDS[key]}: {key} is {there} there, and {here} "
                f"in this run; {then}"
            )
        finished = found.get("finished") is True
        if not (finished or self.own):
            raise ValueError(f"{self.directory} is not finished; run its command again: {COMMAND}")
        return finished

    def mark(self, finished: bool) -> None:
        """Writes the index, from the first process."""
        if distributed.first():
            self.directory.mkdir(parents=True, exist_ok=True)
        write_json(self.directory / FILE, {**self.facts(), "finished": finished})


def plan_cache(options: Mapping[str, Any], workdir: epath.Path, **given: Any) -> CachePlan | None:
    """Returns the cache of a run; None if nothing is encoded, or config.cache.path is NONE.

    Args:
      options: config.cache.
      workdir: workdir of the run.
      **given: the other attributes of CachePlan.

    Raises:
      FileNotFoundError: for a path that has no cache.
      ValueError: for a path where nothing is encoded.
    """
    path, dtype = options["path"], options["dtype"]
    if path == NONE:
        return None
    if not isinstance(given["dataset"], Encoded):
        if path:
            raise ValueError(
                f"config.cache.path is {path!r}, and the config names neither a codec nor a "
                "conditioner, so nothing is encoded; leave the path out"
            )
        return None
    if not path:
        return CachePlan(workdir / "cache", True, dtype, **given)
    places = [absolute(path), absolute(path) / "cache"]
    for place in places:
        if (place / FILE).exists():
            return CachePlan(place, False, dtype, **given)
    raise FileNotFoundError(
        f"config.cache.path is {path!r}, which has no {FILE} in it or in its cache/; make a cache "
        f"with {COMMAND}, or leave the path out"
    )
