"""The engine over a model with recurrent layers: what a request says does not depend on where its states were."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant

from tests.worker.engine.bracket_constraint import constraint_of
from tests.worker.engine.context_model import Config
from tests.worker.engine.generation import (
    SAMPLINGS,
    RandomTraffic,
    engine,
    finish,
    generate,
    ids_of,
    prompt,
    traffic,
)
from tests.worker.engine.recurrent_model import RecurrentModel
from worker.contract import Abort, Add, Choice, Sampling
from worker.engine.engine import Engine

STATE_BYTES = RecurrentModel.bytes_per_state


def recurrent_engine(**options: object) -> Engine:
    return engine(RecurrentModel(), **options)


def poison(machine: Engine) -> None:
    """Fill the slots that nobody may read: those that no sequence holds and that are no snapshot."""
    slots = machine._scheduler.cache.state_slots
    for slot in range(slots.pool.num_entries):
        if slots.pool.is_free(slot) and slot not in slots._snapshots:
            for array in machine._runner._states:
                array[slot] = np.nan


@pytest.fixture(scope="module")
def undisturbed() -> dict[tuple[str, int], tuple]:
    """Every request alone, its prompt in as few pieces as ever, nothing cached."""
    results = {}
    for each in traffic():
        results |= generate([each], recurrent_engine(step_tokens=64, prefix_cache=False))
    return results


def test_what_is_said_depends_on_the_states(undisturbed):
    assert undisturbed != generate(traffic())


def test_batched_equals_alone(undisturbed):
    assert generate(traffic(), recurrent_engine()) == undisturbed


def test_chunked_prefill_equals_whole(undisturbed):
    assert generate(traffic(), recurrent_engine(step_tokens=5)) == undisturbed


@pytest.mark.parametrize(("num_snapshots", "least_hits"), [(0, 0), (1, 4), (3, 8), (100, 60)])
def test_prefix_hit_equals_miss(undisturbed, num_snapshots, least_hits):
    machine = recurrent_engine(state_cache_bytes=num_snapshots * STATE_BYTES)
    assert generate(traffic(), machine) == undisturbed
    assert generate(traffic(), machine) == undisturbed
    assert machine.stats(memory_bytes=0).prefix_hit_tokens >= least_hits


def test_preempted_equals_uninterrupted(undisturbed):
    machine = recurrent_engine(cache_tokens=56)
    assert generate(traffic(), machine) == undisturbed
    assert machine.stats(memory_bytes=0).preemptions > 0


def test_resumed_equals_uninterrupted(undisturbed):
    for each in traffic():
        ids, reason, logprobs = undisturbed[each.request_id, 0]
        for cut in range(len(ids)):
            resumed = Add(each.request_id, each.prompt_ids, each.sampling, (Choice(0, ids[:cut]),))
            assert generate([resumed], recurrent_engine())[each.request_id, 0] == (ids[cut:], reason, logprobs[cut:])


def test_choices_equal_requests_with_consecutive_seeds_and_begin_with_the_state_of_the_first():
    sampling = Sampling(max_tokens=8, temperature=1.0, seed=40)
    machine = recurrent_engine()
    several = generate([Add("n", prompt(1, 10), sampling, (Choice(0), Choice(1), Choice(2)))], machine)
    assert machine.stats(memory_bytes=0).prefix_hit_tokens == 2 * 8
    for choice in range(3):
        one = Add("n", prompt(1, 10), Sampling(max_tokens=8, temperature=1.0, seed=40 + choice))
        assert several["n", choice] == generate([one], recurrent_engine())["n", 0]


def test_choices_that_are_resumed_go_on_from_the_end_of_their_prompt():
    sampling = Sampling(max_tokens=12, temperature=1.0, seed=40)
    whole = generate([Add("n", prompt(1, 10), sampling, (Choice(0), Choice(1)))], recurrent_engine())
    cut = [whole["n", choice][0][:7] for choice in range(2)]
    machine = recurrent_engine()
    resumed = generate([Add("n", prompt(1, 10), sampling, (Choice(0, cut[0]), Choice(1, cut[1])))], machine)
    assert {key: ids for key, (ids, _, _) in resumed.items()} == {key: ids[7:] for key, (ids, _, _) in whole.items()}
    assert machine.stats(memory_bytes=0).prefix_hit_tokens == 8


def test_a_sequence_that_grows_beyond_the_models_limit_begins_without_a_state():
    def limited(**options: object) -> Engine:
        return engine(RecurrentModel(recompute_at=20), **options)

    results = {}
    for each in traffic():
        results |= generate([each], limited(prefix_cache=False))
    for options in ({}, {"step_tokens": 5}, {"cache_tokens": 56}):
        machine = limited(**options)
        assert generate(traffic(), machine) == results
        assert generate(traffic(), machine) == results


def prompt_logprobs(machine: Engine, add: Add) -> list[object]:
    machine.add(add)
    (outputs,) = finish(machine).values()
    return [output.prompt_logprobs for output in outputs if output.prompt_logprobs is not None]


@pytest.mark.parametrize("options", [{}, {"step_tokens": 5}, {"max_sequences": 2}])
def test_a_prompt_that_is_reported_is_computed_whole_whatever_snapshots_there_are(options):
    asking = Add("r", prompt(2, 21), Sampling(max_tokens=4, temperature=0.0, prompt_logprobs=2))
    alone = prompt_logprobs(recurrent_engine(step_tokens=64), asking)
    machine = recurrent_engine(**options)
    generate([Add("before", asking.prompt_ids, SAMPLINGS[0])], machine)
    hits = machine.stats(memory_bytes=0).prefix_hit_tokens
    assert prompt_logprobs(machine, asking) == alone
    assert machine.stats(memory_bytes=0).prefix_hit_tokens == hits


def test_constraints_and_the_tokens_that_they_force_advance_the_state():
    adds = [
        Add(
            f"c{number}", prompt(number, 9 + number), Sampling(max_tokens=14, temperature=1.0, seed=number), grammar="x"
        )
        for number in range(5)
    ]
    results: dict[tuple[str, int], tuple[int, ...]] = {}
    for machines in ([recurrent_engine(step_tokens=64) for _ in adds], [recurrent_engine(step_tokens=7)] * 5):
        said: dict[tuple[str, int], tuple[int, ...]] = {}
        for machine, add in zip(machines, adds, strict=True):
            machine.add(add, constraint_of(add))
        for machine in set(machines):
            said |= {key: ids_of(outputs) for key, outputs in finish(machine).items()}
        assert not results or said == results
        results = said


def test_a_step_that_raised_has_advanced_no_state():
    config = Config(vocab_size=64)
    adds = [Add(f"r{number}", prompt(number, 7 + number), SAMPLINGS[0]) for number in range(4)]
    expected = generate(adds, engine(RecurrentModel(config)))
    machine = engine(RecurrentModel(config, crash_id=40))
    for each in adds:
        machine.add(each)
    outputs = [output for _ in range(3) for output in machine.step()]
    machine.add(Add("bad", (1, 40), SAMPLINGS[0]))  # in one step with the others' next tokens
    collected = finish(machine, outputs)
    assert collected["bad", 0][-1].finish_reason == "error"
    assert {key: ids_of(collected[key]) for key in expected} == {key: ids for key, (ids, _, _) in expected.items()}


def test_the_slots_of_requests_that_leave_are_free_and_counted():
    machine = recurrent_engine(state_cache_bytes=2 * STATE_BYTES)
    stats = machine.stats(memory_bytes=0)
    assert (stats.state_slots_used, stats.state_slots_total) == (0, 10)
    for number in range(3):
        machine.add(Add(f"r{number}", prompt(number, 3), SAMPLINGS[0]))
    machine.step()
    assert machine.stats(memory_bytes=0).state_slots_used == 3
    machine.abort(Abort("r1"))
    assert machine.stats(memory_bytes=0).state_slots_used == 2
    finish(machine)
    assert machine.stats(memory_bytes=0).state_slots_used == 0


def test_a_model_without_recurrent_layers_has_no_slots():
    assert engine().stats(memory_bytes=0).state_slots_total == 0


@settings(max_examples=30)
@given(
    step_tokens=st.integers(1, 20),
    cache_tokens=st.integers(56, 120),
    max_sequences=st.integers(1, 8),
    num_snapshots=st.integers(0, 6),
    order=st.permutations(range(7)),
)
def test_no_schedule_changes_what_a_request_says(
    undisturbed, step_tokens, cache_tokens, max_sequences, num_snapshots, order
):
    adds = traffic()
    machine = recurrent_engine(
        step_tokens=step_tokens,
        cache_tokens=cache_tokens,
        max_sequences=max_sequences,
        state_cache_bytes=num_snapshots * STATE_BYTES,
    )
    assert generate([adds[i] for i in order], machine) == undisturbed


class RandomRecurrentTraffic(RandomTraffic):
    """Random adds, aborts and steps; slots that nobody may read are filled with NaN."""

    make_model = RecurrentModel

    @invariant()
    def what_nobody_may_read_is_poison(self) -> None:
        poison(self.machine)


TestRandomTraffic = RandomRecurrentTraffic.TestCase
TestRandomTraffic.settings = settings(max_examples=20, stateful_step_count=25)
