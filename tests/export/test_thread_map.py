from __future__ import annotations

import threading
import time

import pytest
import torch

from qwenvl_edge_export.files.thread_map import in_order, one_thread_an_operator


def test_results_come_in_order_and_items_are_taken_as_they_are_needed():
    taken = []

    def items():
        for item in range(50):
            taken.append(item)
            yield item

    def slow_at_first(item):
        time.sleep(0.01 if item % 7 == 0 else 0)
        return item * item

    found = in_order(slow_at_first, items())
    assert next(found) == 0 and len(taken) < 50
    assert list(found) == [item * item for item in range(1, 50)]
    assert not list(in_order(slow_at_first, []))


def test_an_exception_comes_in_its_place_and_ends_the_work():
    def function(item):
        if item == 20:
            raise ValueError("twenty")
        return item

    before, seen = set(threading.enumerate()), []
    with pytest.raises(ValueError, match="twenty"):
        seen.extend(in_order(function, range(10_000)))
    found = in_order(function, range(19))
    next(found)
    found.close()
    assert seen == list(range(20)) and set(threading.enumerate()) <= before


def test_operators_have_their_threads_again_afterwards():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), one_thread_an_operator():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before
