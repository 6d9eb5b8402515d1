"""What outputs say of the prefix cache."""

from __future__ import annotations

from tests.worker.engine.generation import engine, finish, generate, prompt, traffic
from worker.contract import Add, Choice, Sampling
from worker.engine.engine import Engine


def cached(machine: Engine, *adds: Add) -> list[set[int]]:
    """The counts that the tokens of each choice come with."""
    for each in adds:
        machine.add(each)
    return [{output.cached_tokens for output in outputs if output.ids} for outputs in finish(machine).values()]


def test_each_token_says_how_much_of_its_prompt_was_cached_when_the_choice_was_started() -> None:
    machine, sampling = engine(), Sampling(max_tokens=9)
    assert cached(machine, Add("a", prompt(1, 15), sampling)) == [{0}]
    assert cached(machine, Add("b", prompt(1, 15), sampling)) == [{12}]
    assert cached(machine, Add("c", prompt(1, 9), sampling, (Choice(0), Choice(1)))) == [{8}, {8}]


def test_tokens_of_an_earlier_owner_are_not_of_the_prompt() -> None:
    machine, sampling = engine(), Sampling(max_tokens=9)
    ids = generate([Add("a", prompt(1, 15), sampling)], machine)["a", 0][0]
    assert cached(machine, Add("b", prompt(1, 15), sampling, (Choice(0, ids[:7]),))) == [{15}]


def test_what_a_preempted_one_finds_of_its_own_is_not_counted() -> None:
    machine = engine(cache_tokens=56)
    assert all(len(each) == 1 for each in cached(machine, *traffic()))
    assert machine.stats(memory_bytes=0).preemptions > 0
