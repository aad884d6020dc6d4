"""Batches on the devices before they are asked for; data.images reads and decodes further ahead."""

import collections
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")


def prefetch(items: Generator[Item, None, None], count: int) -> Generator[Item, None, None]:
    """The same items in their order, made on a thread, at most `count` of them too early.

    What making an item raises is raised where it would have been yielded. The thread begins with
    the first item that is asked for, and ends with the items or when this iterator is closed, which
    waits for the item being made and closes `items` too.

    Args:
      items: made by a function of their number, not of when they are asked for.
      count: from 1.
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
