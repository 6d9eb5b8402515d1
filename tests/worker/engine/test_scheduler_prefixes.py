"""Requests that come together with the same long beginning: one computes it."""

import pytest

from tests.worker.engine.test_scheduler import BLOCK_TOKENS, run, scheduler, sequence, sizes

PREFIX = list(range(3 * BLOCK_TOKENS))


@pytest.fixture(autouse=True)
def waits_for_two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.cache.block_tables.LEAST_AWAITED_TOKENS", 2 * BLOCK_TOKENS)


def test_a_prefix_that_comes_several_times_at_once_is_computed_once():
    machine = scheduler(num_blocks=32, step_tokens=20)
    named = [sequence([*PREFIX, *map(ord, name)], name=name) for name in ("first", "second", "third")]
    for each in (*named, sequence([77], name="other")):
        machine.add(each)
    planned = []
    for _ in range(2):
        chunks = machine.plan()
        planned.append(sizes(chunks))
        run(machine, chunks)
    # Who is passed over keeps nobody waiting, and begins in the step behind the one that computes the prefix.
    assert planned == [{"first": 17, "other": 1}, {"first": 1, "other": 1, "second": 6, "third": 5}]
    assert machine.num_prefix_hit_tokens == 2 * len(PREFIX)
    assert len({tuple(each.block_ids[:3]) for each in named}) == 1


def test_who_waits_for_a_prefix_computes_it_if_its_leader_fails():
    machine = scheduler(num_blocks=32, step_tokens=20)
    first, second, third = (sequence([*PREFIX, number], name=str(number)) for number in range(3))
    for each in (first, second, third):
        machine.add(each)
    assert sizes(machine.plan()) == {"0": 13}
    assert second.waits_for_prefix and third.waits_for_prefix
    first.finish_reason = "error"
    machine.remove(first)
    assert sizes(machine.plan()) == {"1": 13}
    assert third.waits_for_prefix
    machine.check_invariants()


def test_a_step_looks_at_few_of_those_that_wait_for_a_prefix(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("worker.engine.scheduler.MOST_PASSED", 3)
    machine = scheduler(num_blocks=64, step_tokens=20, max_sequences=16)
    machine.add(sequence([*PREFIX, 50, 51, 52, 53]))
    for number in range(5):
        machine.add(sequence([*PREFIX, number]))
    machine.add(sequence([77], name="other"))
    assert "other" not in sizes(machine.plan())
    assert sum(each.waits_for_prefix for each in machine.waiting) == 3
