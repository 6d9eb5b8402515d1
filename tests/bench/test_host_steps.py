from __future__ import annotations

import pytest

from tests.bench.host_steps import MIXES, PARTS, measure


@pytest.mark.parametrize("mix", MIXES)
def test_a_step_and_its_frame_are_told_by_their_parts(mix: str) -> None:
    parts = measure(mix, num_streams=3, num_rounds=1)
    assert [*parts] == [*PARTS]
    assert all(each > 0 for each in parts.values())
