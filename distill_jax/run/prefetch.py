"""Prefetches batches to the devices; data.images reads and decodes files further ahead."""

import collections
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")


def prefetch(items: Generator[Item, None, None], count: int) -> Generator[Item, None, None]:
    """Iterates over `items` with a background thread that keeps up to `count` of them ready.

    An exception of `items` is raised in place of its item. The thread starts at the first `next`.
    It ends after the last item, or when this iterator is closed, which waits for the current item
    and closes `items`.

    Args:
      items: generator whose items do not depend on the time of the call.
      count: largest number of items ready, at least 1.
    """
    thread, end = ThreadPoolExecutor(1, "prefetch"), object()
    try:
        begun = (thread.submit(next, items, end) for _ in range(count))
        made: collections.deque[Future[Any]] = collections.deque(begun)
        while True:
            made.append(thread.submit(next, items, end))
            item = made.popleft().result()
            if item is end:
                return
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
        items.close()
