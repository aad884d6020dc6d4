"""Batches on the devices before they are asked for; data.images reads and decodes further ahead."""

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")


def ahead(items: Iterator[Item], count: int) -> Iterator[Item]:
    """The same items in their order, made on a thread, at most `count` of them too early.

    What making an item raises is raised where it would have been yielded. The thread begins with
    the first item that is asked for, and ends with the items or when this iterator is closed, which
    waits for the item being made and closes `items` too.

    Args:
      items: made by a function of their number, not of when they are asked for.
      count: from 1.
    """
    room, ready, closed = threading.Semaphore(count), queue.SimpleQueue(), threading.Event()

    def make() -> None:
        try:
            while room.acquire() and not closed.is_set():
                ready.put((next(items), None))
        except BaseException as error:
            ready.put((None, error))
        finally:
            if hasattr(items, "close"):
                items.close()

    thread = threading.Thread(target=make, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            room.release()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        closed.set()
        room.release()
        thread.join()
