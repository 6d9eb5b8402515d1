from __future__ import annotations

import pytest

from tests.bench.host_steps import MIXES, PARTS, measure, measure_first, measure_turnover


@pytest.mark.parametrize("mix", MIXES)
def test_a_step_and_its_frame_are_told_by_their_parts(mix: str) -> None:
    parts = measure(mix, num_streams=3, num_rounds=1)
    assert [*parts] == [*PARTS]
    assert all(each > 0 for each in parts.values())


def test_steps_of_streams_that_begin_and_end_are_told_by_the_same_parts() -> None:
    parts = measure_turnover(num_streams=33, num_rounds=1)
    assert [*parts] == [*PARTS]
    assert all(each > 0 for each in parts.values())


def test_a_first_token_takes_the_host_some_time() -> None:
    assert measure_first(48, is_cached=False, num_rounds=1) > 0
    assert measure_first(48, is_cached=True, num_rounds=1) > 0
