"""Reading ahead: the same items in order, errors where they belong, and no thread left behind."""

from __future__ import annotations

import contextlib
import threading

import pytest

from cdul_fast.training.ahead import read_ahead


def test_items_come_in_order_and_are_made_ahead():
    made = []
    third = threading.Event()

    def items():
        for number in range(6):
            made.append(number)
            if number == 2:
                third.set()
            yield number

    ahead = read_ahead(items(), 2)
    assert next(ahead) == 0
    assert third.wait(10), "the thread works while the consumer does not"
    assert list(ahead) == [1, 2, 3, 4, 5] == made[1:]


def test_an_error_comes_where_its_item_would():
    def items():
        yield 1
        raise OSError("gone")

    ahead = read_ahead(items(), 3)
    assert next(ahead) == 1
    with pytest.raises(OSError, match="gone"):
        next(ahead)


def test_stopping_early_closes_the_items_and_ends_the_thread():
    closed = []

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.append(threading.current_thread())

    with contextlib.closing(read_ahead(items(), 1)) as ahead:
        assert next(ahead) == 0
    assert len(closed) == 1 and not closed[0].is_alive()
    assert closed[0] is not threading.current_thread()
