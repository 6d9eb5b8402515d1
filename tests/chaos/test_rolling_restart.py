from __future__ import annotations

import pytest

from tests.chaos.clients.seen import Seen
from tests.chaos.rolling_restart import gap_s

STREAM = Seen("events", "m", "j", submitted_s=10.0, ended_s=14.5, arrivals=[10.5, 11.0, 14.0, 14.5])


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected_s"),
    [(10.6, 10.8, 0.5), (11.5, 12.0, 3.0), (10.6, 12.0, 3.0), (14.2, 20.0, 0.5), (15.0, 16.0, None), (1.0, 9.0, None)],
)
def test_the_gap_of_a_stream_is_the_longest_that_meets_a_restart(
    start_s: float, end_s: float, expected_s: float | None
) -> None:
    assert gap_s(STREAM, start_s, end_s) == expected_s
