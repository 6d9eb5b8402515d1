"""The engine ahead of what it knows, with states: the same tokens as when it waits for every one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcd.errors import CudaError
from tests.worker.engine.cuda.late_device import LateModel
from tests.worker.engine.cuda.test_runner import approximately
from tests.worker.engine.generation import RandomTraffic, engine, generate, prompt, traffic
from tests.worker.engine.recurrent_model import RecurrentModel
from worker.contract import Add, Sampling
from worker.engine.engine import Engine

pytestmark = pytest.mark.usefixtures("no_wait_is_long")
STATE_BYTES = RecurrentModel.bytes_per_state


def late_engine(**options: object) -> Engine:
    return engine(LateModel(RecurrentModel()), **options)


@pytest.fixture(scope="module")
def expected() -> dict[tuple[str, int], tuple]:
    """Of an engine that waits for each step."""
    return approximately(generate(traffic(), engine(RecurrentModel())))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"step_tokens": 5},
        {"cache_tokens": 56},
        {"max_sequences": 3},
        {"prefix_cache": False},
        {"state_cache_bytes": 0},
        {"state_cache_bytes": 2 * STATE_BYTES},
    ],
)
def test_ids_are_those_of_the_engine_that_waits(expected, options):
    machine = late_engine(**options)
    assert approximately(generate(traffic(), machine)) == expected
    assert approximately(generate(traffic(), machine)) == expected
    if "cache_tokens" in options:
        assert machine.stats(memory_bytes=0).preemptions > 0


def test_a_prefix_is_gone_on_from_in_a_snapshot_on_the_device(expected):
    machine = late_engine(state_cache_bytes=100 * STATE_BYTES)
    for _ in range(2):
        assert approximately(generate(traffic(), machine)) == expected
    assert machine.stats(memory_bytes=0).prefix_hit_tokens >= 60


@settings(max_examples=12)
@given(
    step_tokens=st.integers(2, 40),
    cache_tokens=st.integers(56, 200),
    max_sequences=st.integers(1, 8),
    num_snapshots=st.integers(0, 5),
    order=st.permutations(range(7)),
)
def test_no_schedule_changes_what_a_request_says(
    expected, step_tokens, cache_tokens, max_sequences, num_snapshots, order
):
    machine = late_engine(
        step_tokens=step_tokens,
        cache_tokens=cache_tokens,
        max_sequences=max_sequences,
        state_cache_bytes=num_snapshots * STATE_BYTES,
    )
    adds = traffic()
    assert approximately(generate([adds[number] for number in order], machine)) == expected


def test_a_step_that_fails_on_the_host_is_not_run_again_on_states_that_it_may_have_overwritten():
    machine = late_engine()
    machine.add(Add("r", prompt(1, 9), Sampling(max_tokens=5, temperature=0.0)))
    machine._runner._model.device.uploads_left = 0
    with pytest.raises(CudaError, match="a step with states failed: ValueError at "):
        while machine.has_work:
            machine.step()


class RandomLateTraffic(RandomTraffic):
    """Random adds, aborts and steps, ahead of the draws."""

    make_model = RecurrentModel

    def __init__(self) -> None:
        super().__init__()
        self.machine = late_engine(cache_tokens=40, step_tokens=9, max_sequences=3, state_cache_bytes=2 * STATE_BYTES)


TestRandomLateTraffic = RandomLateTraffic.TestCase
TestRandomLateTraffic.settings = settings(max_examples=20, stateful_step_count=25)
