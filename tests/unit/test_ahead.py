"""Threads work ahead of the caller, but not on everything at once."""

from itertools import count, islice

import pytest

from spanlake.ahead import map_ahead


def test_results_come_in_order_and_few_items_wait() -> None:
    numbers = count()
    found = map_ahead(str, numbers, 3)
    assert list(islice(found, 1000)) == [str(number) for number in range(1000)]
    assert next(numbers) < 1200
    del found
    assert list(map_ahead(str, range(5), 3)) == ["0", "1", "2", "3", "4"] and not list(map_ahead(str, [], 3))


def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        next(map_ahead(lambda number: 1 // number, count(), 2))
