"""Who starts where not all that wait find room."""

import pytest

from tests.worker.engine.test_scheduler import run, scheduler, sequence


def test_nobody_is_preempted_whose_longest_form_had_been_foreseen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("worker.engine.cache.sequence_cache.LEAST_FORESEEN", 12)
    machine = scheduler(num_blocks=9)
    for index in range(5):
        machine.add(sequence(list(range(10 * index, 10 * index + 4)), max_output=12, name=str(index)))
    ended, most_running = [], 0
    while machine.waiting or machine.running:
        ended += run(machine, machine.plan())
        most_running = max(most_running, len(machine.running))
    assert [each.request_id for each in ended] == ["0", "1", "2", "3", "4"]
    assert (machine.num_preemptions, most_running) == (0, 2)


def test_outputs_are_foreseen_that_are_as_long_as_those_that_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("worker.engine.cache.sequence_cache.OUTPUTS_REMEMBERED", 1)
    machine = scheduler(num_blocks=9)
    for index in range(9):
        machine.add(sequence(list(range(10 * index, 10 * index + 4)), max_output=12, name=str(index)))
    num_preemptions = []  # when each ended
    while machine.waiting or machine.running:
        num_preemptions += [machine.num_preemptions for _ in run(machine, machine.plan())]
    assert 0 < num_preemptions[0] == num_preemptions[-1]
