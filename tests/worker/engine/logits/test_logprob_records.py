"""Records of log probabilities hold what the arrays do, for each number of alternatives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.worker.logprob_records import TokenLogprobs, read, record
from worker.contract import logprob_record_bytes
from worker.engine.logits.logprob_records import are_finite, certain_record, logprob_records

LOGPROBS = np.array([-0.5, -1.25], np.float32)
TOP_IDS = np.array([[7, 9, 3], [2**31 - 1, 0, 5]], np.int32)
TOP_LOGPROBS = np.array([[-0.5, -1.0, -3.5], [-0.25, -np.inf, -np.inf]], np.float32)


@pytest.mark.parametrize("num_top", range(4))
def test_a_record_of_each_row_has_so_many_alternatives_and_those_that_cannot_be_drawn_are_none(num_top: int) -> None:
    expected = [
        TokenLogprobs(-0.5, (7, 9, 3)[:num_top], (-0.5, -1.0, -3.5)[:num_top]),
        TokenLogprobs(-1.25, (2**31 - 1,)[:num_top], (-0.25,)[:num_top]),
    ]
    records = logprob_records(LOGPROBS, TOP_IDS[:, :num_top], TOP_LOGPROBS[:, :num_top])
    assert records == [record(each, num_top) for each in expected]
    assert {len(each) for each in records} == {logprob_record_bytes(num_top)}
    assert read(b"".join(records), num_top) == expected


@pytest.mark.parametrize("num_top", range(3))
def test_a_token_without_alternatives_is_certain(num_top: int) -> None:
    assert certain_record(9, num_top) == record(TokenLogprobs(0.0, (9,)[:num_top], (0.0,)[:num_top]), num_top)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_only_the_tokens_own_log_probabilities_must_be_finite(wrong: float) -> None:
    healthy = record(TokenLogprobs(-1.0, (4,), (-0.5,)), 3)
    assert are_finite(b"", 3)
    assert are_finite(2 * healthy, 3)
    assert not are_finite(healthy + record(TokenLogprobs(wrong, (4,), (-0.5,)), 3), 3)
