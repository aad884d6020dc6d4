import itertools
import threading
import time

import pytest

from distill_jax.run.prefetch import prefetch


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_items_keep_their_order_and_end():
    assert list(prefetch((i for i in range(100)), 3)) == list(range(100))
    assert not threads()


def test_at_most_count_items_are_made_ahead():
    made = []

    def items():
        for i in itertools.count():
            made.append(i)
            yield i

    batches = prefetch(items(), 2)
    assert not made
    assert next(batches) == 0
    for _ in range(100):
        if len(made) == 3:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2]
    batches.close()


def test_an_exception_is_raised_in_place_of_its_item():
    def items():
        yield 1
        yield 2
        raise ValueError("image 3 cannot be read")

    batches = prefetch(items(), 5)
    assert [next(batches), next(batches)] == [1, 2]
    with pytest.raises(ValueError, match="image 3 cannot be read"):
        next(batches)
    assert not threads()


def test_closing_ends_the_thread_and_closes_the_items():
    closed = []

    def items():
        try:
            yield from itertools.count()
        finally:
            closed.append(len(threads()))

    batches = prefetch(items(), 2)
    next(batches)
    assert len(threads()) == 1
    batches.close()
    assert not threads()
    assert closed == [0]  # The thread has ended, so two threads never run the generator.


def test_an_unused_iterator_starts_no_thread():
    prefetch((i for i in range(3)), 2).close()
    assert not threads()
