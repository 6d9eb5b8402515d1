"""Engines of a small model, requests for them, and running these to their ends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import cache

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.worker.engine.context_model import ContextModel
from tests.worker.logprob_records import read
from worker.contract import Abort, Add, Choice, Sampling, TokenOutput
from worker.engine.engine import Engine
from worker.engine.sequence import Sequence
from worker.settings import Settings

SAMPLINGS = [
    Sampling(max_tokens=12, temperature=0.0),
    Sampling(max_tokens=9, temperature=0.8, seed=3, top_p=0.9),
    Sampling(max_tokens=14, temperature=1.3, seed=4, top_k=5, repetition_penalty=1.3, logprobs=2),
    Sampling(
        max_tokens=16, temperature=1.0, seed=5, stop_token_ids=tuple(range(12)), min_tokens=4, frequency_penalty=0.3
    ),
]


def engine(model: ContextModel | None = None, **options: object) -> Engine:
    cache_tokens = options.pop("cache_tokens", 256)
    defaults = {"device": "cpu", "kv_block_tokens": 4, "step_tokens": 16, "max_sequences": 8}
    return Engine(model or ContextModel(), Settings(**{**defaults, "kv_cache_bytes": cache_tokens * 8, **options}))


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple((seed * 7 + i * i) % 32 for i in range(length))


def traffic() -> list[Add]:
    return [Add(f"r{i}", prompt(i, 3 + 5 * i), SAMPLINGS[i % 4], priority=i % 3) for i in range(7)]


def finish(machine: Engine, outputs: list[TokenOutput] | None = None) -> dict[tuple[str, int], list[TokenOutput]]:
    """Step until nothing is left; the outputs of every choice."""
    collected = defaultdict(list)
    for output in outputs or ():
        collected[output.request_id, output.choice].append(output)
    for _ in range(10_000):
        if not machine.has_work:
            return collected
        for output in machine.step():
            collected[output.request_id, output.choice].append(output)
        machine.check_invariants()
    raise AssertionError("the engine never came to an end")


def ids_of(outputs: list[TokenOutput]) -> tuple[int, ...]:
    return tuple(token_id for output in outputs for token_id in output.ids)


def generate(adds: list[Add], machine: Engine | None = None) -> dict[tuple[str, int], tuple]:
    """(ids, finish reason, logprobs) of every choice."""
    machine = machine or engine()
    for each in adds:
        machine.add(each)
    collected = finish(machine)
    for outputs in collected.values():
        assert [output.finish_reason is None for output in outputs] == [True] * (len(outputs) - 1) + [False]
    num_tops = {each.request_id: each.sampling.logprobs for each in adds}
    return {
        key: (
            ids_of(outputs),
            outputs[-1].finish_reason,
            [output.logprobs and read(output.logprobs, num_tops[key[0]] or 0) for output in outputs if output.ids],
        )
        for key, outputs in collected.items()
    }


@cache
def alone(
    make_model: Callable[[], ContextModel], prompt_ids: tuple[int, ...], sampling_number: int, choice: int
) -> tuple[tuple[int, ...], str]:
    """Ids and finish reason of a choice that has an engine to itself; random traffic often repeats a request."""
    add = Add("r", prompt_ids, SAMPLINGS[sampling_number], (Choice(choice),))
    ids, finish_reason, _ = generate([add], engine(make_model()))["r", choice]
    return ids, finish_reason


def sequence(
    token_ids: list[int], block_ids: list[int], *, num_prompt: int = 0, choice: int = 0, **options: object
) -> Sequence:
    sampling = Sampling(**{"max_tokens": 8, "temperature": 0.0, **options})
    num_prompt = num_prompt or len(token_ids)
    return Sequence("r", choice, sampling, 0, token_ids, num_prompt, 8, block_ids=block_ids)


class EngineStateMachine(RuleBasedStateMachine):
    """Aborts and steps of a ``machine``, whose requests others add; ``outputs`` are those of each choice."""

    machine: Engine
    outputs: dict[tuple[str, int], list[TokenOutput]]

    @rule(number=st.integers(0, 9), choice=st.sampled_from([None, 0, 1]))
    def abort(self, number: int, choice: int | None) -> None:
        self.machine.abort(Abort(f"r{number}", choice))

    @rule(num_steps=st.integers(1, 6))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            for output in self.machine.step():
                self.outputs[output.request_id, output.choice].append(output)
            self.machine.check_invariants()


class RandomTraffic(EngineStateMachine):
    """Random adds, aborts and steps: every choice ends exactly once, with the ids of an undisturbed run."""

    make_model: Callable[[], ContextModel] = ContextModel

    def __init__(self) -> None:
        super().__init__()
        self.machine = engine(self.make_model(), cache_tokens=40, step_tokens=9, max_sequences=3, state_cache_bytes=80)
        self.adds: dict[str, Add] = {}
        self.outputs = defaultdict(list)

    @rule(
        prompt_ids=st.lists(st.integers(0, 1), min_size=1, max_size=20),
        sampling=st.sampled_from(SAMPLINGS),
        num_choices=st.integers(1, 3),
        priority=st.integers(0, 2),
    )
    def add(self, prompt_ids: list[int], sampling: Sampling, num_choices: int, priority: int) -> None:
        name = f"r{len(self.adds)}"
        choices = tuple(Choice(index) for index in range(num_choices))
        self.adds[name] = Add(name, tuple(prompt_ids), sampling, choices, priority)
        self.machine.add(self.adds[name])

    @invariant()
    def nothing_follows_an_end(self) -> None:
        for outputs in self.outputs.values():
            assert all(output.finish_reason is None for output in outputs[:-1])

    def teardown(self) -> None:
        for key, outputs in finish(self.machine).items():
            self.outputs[key] += outputs
        assert self.outputs.keys() == {
            (add.request_id, each.index) for add in self.adds.values() for each in add.choices
        }
        for (name, choice), outputs in self.outputs.items():
            add = self.adds[name]
            expected = alone(self.make_model, add.prompt_ids, SAMPLINGS.index(add.sampling), choice)
            if outputs[-1].finish_reason == "abort":
                assert expected[0][: len(ids_of(outputs))] == ids_of(outputs)
            else:
                assert (ids_of(outputs), outputs[-1].finish_reason) == expected
        stats = self.machine.stats(memory_bytes=0)
        assert (stats.kv_blocks_used, stats.state_slots_used) == (0, 0)
