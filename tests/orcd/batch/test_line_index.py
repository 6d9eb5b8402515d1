from __future__ import annotations

import pytest

from orcd.batch.line_index import LineIndex
from orcd.batch.place import Place


def test_a_line_is_done_with_the_digest_it_had() -> None:
    index = LineIndex([3, 1])
    index.finish(Place(0, 3), 0)
    index.finish(Place(1, 1), 7)
    index.finish(Place(1, 1), 8)
    assert [index.digest(Place(0, number)) for number in (1, 2, 3)] == [None, None, 0]
    assert index.digest(Place(1, 1)) == 8
    assert index.num_done == 2


def test_failures_are_counted_up_to_a_limit_and_told_of_lines_that_are_not_done() -> None:
    index = LineIndex([2])
    for _ in range(300):
        index.fail(Place(0, 2))
    assert (index.num_failures(Place(0, 1)), index.num_failures(Place(0, 2))) == (0, 255)
    assert list(index.failures()) == [(Place(0, 2), 255)]
    index.finish(Place(0, 2), 1)
    assert list(index.failures()) == []


@pytest.mark.parametrize("place", [Place(0, 3), Place(1, 1)])
def test_a_line_that_no_input_has_is_refused(place: Place) -> None:
    index = LineIndex([2])
    for method in (index.digest, index.num_failures, index.fail):
        with pytest.raises(IndexError):
            method(place)
    with pytest.raises(IndexError):
        index.finish(place, 1)
