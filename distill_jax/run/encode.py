"""Encoding of a dataset into a cache: on all devices, shard by shard, so that it can go on."""

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from distill_jax.data.base import Source
from distill_jax.data.encoded import Cache
from distill_jax.data.records import Shards
from distill_jax.diffusion.pixels import normalise
from distill_jax.run.cache import NONE, CachePlan
from distill_jax.run.costs import BYTES, scaled
from distill_jax.run.fits import on_devices
from distill_jax.run.prefetch import prefetch
from distill_jax.runtime import distributed, heartbeat, logging
from distill_jax.runtime.sharding import make_layout


def finish(plan: CachePlan, stop: Callable[[], bool]) -> tuple[Cache, bool]:
    """Fills the cache, unless it is finished, and opens it.

    Each process writes shards of its own. A shard appears when it is complete, and those that are
    there are not written again.

    Args:
      plan: the cache, whose codec and text encoder are finished.
      stop: function that is polled between batches.

    Returns:
      The cache, and whether anything was written. It is empty in a bucket, and for datasets whose
      images have no numbers.

    Raises:
      InterruptedError: if `stop` returns true.
      ValueError: as CachePlan.check and Records do.
      OSError: if the disk is full.
    """
    if "://" in str(plan.directory):
        logging.say(
            f"cache: none, because array_record writes to disks only and {plan.directory} is in a "
            "bucket; images are encoded when they are drawn"
        )
        return Cache(), False
    if plan.codec and plan.source is None and getattr(plan.dataset.source, "has_images", True):
        logging.say("cache: no latents, because the dataset lacks the methods of data.Encodable")
    if not plan.shards:
        return Cache(), False
    finished = plan.check()
    missing = {name: _missing(part) for name, part in plan.shards.items()} if plan.own else {}
    wrote = any(missing.values())
    if wrote or (plan.own and not finished):
        plan.mark(finished=False)
        began = time.monotonic()
        for name in plan.shards:
            encoder = _Images(plan) if name == "latents" else _Texts(plan)
            _fill(plan, name, missing[name], encoder, stop)
        distributed.barrier("cache filled")
        plan.mark(finished=True)
        _say(plan, time.monotonic() - began)
    return plan.read(), wrote


def _say(plan: CachePlan, seconds: float) -> None:
    counts = " and ".join(f"{part.count:,} {name}" for name, part in plan.shards.items())
    size = scaled(sum(part.nbytes for part in plan.shards.values()), BYTES)
    logging.say(f"cache: {counts} in {seconds:.0f} s, {size} in {plan.directory}")


def _missing(shards: Shards) -> list[int]:
    """Returns the shards that the first process does not find."""
    missing = np.isin(np.arange(len(shards.files)), shards.missing())
    return np.flatnonzero(distributed.allgather(missing[None])[0]).tolist()


@runtime_checkable
class _Encoder(Protocol):
    """An encoder of records by number: it reads their examples, and encodes what was read."""

    step: int

    def read(self, rows: np.ndarray) -> Any: ...

    def encode(self, found: Any) -> dict[str, np.ndarray]: ...


class _Images:
    """The encoder of images, on all devices of the mesh."""

    def __init__(self, plan: CachePlan):
        assert plan.codec is not None and plan.source is not None
        self._layout, self._source = plan.layout, plan.source
        codec = plan.codec.codec
        self._kind, self._params = codec.kind, plan.layout.replicate(jax.device_get(codec.params))
        self.step = max(1, plan.batch // plan.layout.part[1])

    def read(self, rows: np.ndarray) -> Source:
        return self._source.examples(rows)

    def encode(self, found: Source) -> dict[str, np.ndarray]:
        x = normalise(found.x)
        views = [x, np.ascontiguousarray(x[:, :, ::-1])] if self._source.flip else [x]
        made = [
            on_devices(self._kind, self._layout, self._params, self._layout.shard_batch(view))
            for view in views
        ]
        latents = np.stack([self._layout.unshard_batch(z) for z in made], axis=1)
        return {"label": found.label, "latents": latents}


class _Texts:
    """The encoder of captions, on all devices of this process."""

    def __init__(self, plan: CachePlan):
        assert plan.conditioner is not None
        text, devices = plan.conditioner.conditioner, jax.local_devices()
        self.step = text.batch
        layout = make_layout({"data": -1}, devices[: math.gcd(self.step, len(devices))])
        # The first device takes the parameters that it has.
        params = jax.device_put(text.params, layout.replicated)
        self._text = dataclasses.replace(text, params=params, place=layout.shard_batch)
        self._captions = plan.captions

    def read(self, rows: np.ndarray) -> list[str]:
        return [self._captions[row] for row in rows]

    def encode(self, found: list[str]) -> dict[str, np.ndarray]:
        return self._text(found, len(found))


def _fill(
    plan: CachePlan, name: str, missing: list[int], encoder: _Encoder, stop: Callable[[], bool]
) -> None:
    """Writes the missing shards, as many at a time as there are parts of a batch."""
    shards, (part, parts) = plan.shards[name], plan.layout.part
    # Processes that differ in the tensor axis only encode the same, and one of them writes.
    same = distributed.allgather(np.array([[part]]))[:, 0]
    writes = int(np.flatnonzero(same == part)[0]) == jax.process_index()
    left = sum(len(shards.rows(shard)) for shard in missing)
    progress = logging.Progress(f"cache, {name}", shards.count, shards.count - left)
    with contextlib.closing(progress):
        for first in range(0, len(missing), parts):
            group = missing[first : first + parts]
            # All processes take the same number of steps, also those without a shard.
            mine = group[part] if part < len(group) else group[0]
            longest = max(len(shards.rows(shard)) for shard in group)
            made = _records(shards, mine, longest, encoder, stop)
            if writes and part < len(group):
                shards.write(mine, made)
            else:
                collections.deque(made, maxlen=0)
            left -= sum(len(shards.rows(shard)) for shard in group)
            progress.update(shards.count - left, "")


def _records(
    shards: Shards, shard: int, longest: int, encoder: _Encoder, stop: Callable[[], bool]
) -> Iterator[np.ndarray]:
    """Yields the records of a shard step by step; the last one is repeated up to `longest`."""
    rows, step = np.asarray(shards.rows(shard)), encoder.step

    def read() -> Generator[Any, None, None]:
        for start in range(0, longest, step):
            yield encoder.read(rows[np.minimum(np.arange(start, start + step), len(rows) - 1)])

    with contextlib.closing(prefetch(read(), 2)) as found:
        for each in found:
            if stop():
                raise InterruptedError("stopped while filling the cache")
            heartbeat.beat()
            yield _stored(encoder.encode(each), shards.dtype)


def _stored(fields: dict[str, np.ndarray], dtype: np.dtype) -> np.ndarray:
    """Returns records with these fields; raises ValueError for values that they cannot hold."""
    records = np.empty(len(next(iter(fields.values()))), dtype)
    for name, values in fields.items():
        with np.errstate(over="ignore"):
            records[name] = values
        if not np.isfinite(records[name]).all():
            raise ValueError(
                f"{name} has values up to {np.abs(values).max():g}, which are not finite as "
                f"{dtype[name].base}; set config.cache.dtype to float32, or config.cache.path to "
                f"{NONE}"
            )
    return records
