"""Random traffic far ahead of what the host knows: at every step the device has what a plain step would be sent."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from tests.worker.engine.bracket_constraint import BracketConstraint, RunConstraint
from tests.worker.engine.context_model import Config, ContextModel
from tests.worker.engine.cuda.checked_model import CheckedModel
from tests.worker.engine.cuda.checked_runner import CheckedRunner
from tests.worker.engine.cuda.test_runner_late_draws import ReplacingConstraint
from tests.worker.engine.generation import engine, finish, prompt
from tests.worker.engine.recurrent_model import RecurrentModel
from worker.contract import Abort, Add, Choice, Sampling
from worker.engine.cohort import StepInFlight
from worker.engine.sequence import Chunk

CONFIG = Config(vocab_size=37, context_length=160)
SMALL_LIMITS = {
    "kernels.logit_edits.SHORT_PROMPT": 8,
    "worker.engine.logits.edit_rows.SHORT_PROMPT": 8,
    "worker.engine.cache.block_tables.LEAST_AWAITED_TOKENS": 4,
    "worker.engine.cuda.padded_step.LEAST_TOKENS": 4,
    "worker.engine.cuda.whole_step_graphs.MOST_GRAPHS": 3,
    "worker.engine.cuda.prefix_grouping.TILE_KEYS": 4,
    "worker.engine.cuda.prefix_grouping.LEAST_BYTES": 1,
    "worker.engine.cuda.runner.CudaRunner": CheckedRunner,
}


class Traffic:
    """Requests with few wishes or many, with constraints or without, that come fast or slowly; some are aborted.

    With some seeds launches and late draws fail halfway.
    """

    def __init__(self, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.chance = chance = random.Random(seed)
        for name, value in SMALL_LIMITS.items():
            monkeypatch.setattr(name, value)
        many = chance.choice([1, 1, 3, 64])
        for module in ("scheduler", "cuda.runner"):
            monkeypatch.setattr(f"worker.engine.{module}.MANY", many)
        monkeypatch.setattr("worker.engine.cuda.runner.LONG_WAIT_S", chance.choice([math.inf, math.inf, 0.0]))
        has_states = seed % 3 == 0
        self.may_fail = not has_states and seed % 2 == 0
        self.density = chance.choice([0.0, 0.1, 0.6])
        self.share = chance.choice([0.0, 0.1, 0.7, 1.0])  # of requests with a constraint
        self.arrivals = chance.choice([0.1, 0.4])
        recompute_at = chance.choice([None, 20])
        make = RecurrentModel if has_states else ContextModel
        self.model = CheckedModel(make(CONFIG, recompute_at), seed=seed)
        self.machine = engine(
            self.model,
            step_tokens=chance.choice([7, 24, 48]),
            cache_tokens=chance.choice([160, 400]),
            max_sequences=chance.choice([3, 5, 8]),
            prefix_cache=chance.random() < 0.7,
            state_cache_bytes=chance.choice([8, 20]) * RecurrentModel.bytes_per_state,
        )
        self.num_arrived = self.num_crowded = 0
        scheduler = self.machine._scheduler
        launch = scheduler.launch

        def count_and_launch(chunks: list[Chunk]) -> StepInFlight:
            self.num_crowded += len(scheduler.running) > scheduler.max_running
            return launch(chunks)

        monkeypatch.setattr(scheduler, "launch", count_and_launch)

    def _wish(self, value: object, otherwise: object) -> object:
        return value if self.chance.random() < self.density else otherwise

    def arrive(self) -> None:
        chance = self.chance
        sampling = Sampling(
            max_tokens=chance.randint(1, 60),
            temperature=chance.choice([0.0, 1.5]),
            seed=chance.randrange(2**64),
            repetition_penalty=self._wish(1.7, 1.0),
            frequency_penalty=self._wish(-0.4, 0.0),
            logit_bias=self._wish({chance.randrange(37): -100.0}, {}),
            stop_token_ids=(chance.randrange(37),),
            min_tokens=self._wish(3, 0),
            logprobs=self._wish(chance.choice([0, 3]), None),
            prompt_logprobs=chance.choice([None, None, 2]),
        )
        constraint = chance.choice(
            [BracketConstraint(100), RunConstraint(100, 5, is_told=True), ReplacingConstraint(99)]
        )
        choices = tuple(map(Choice, range(chance.choice([1, 1, 2, 3]))))
        ids = prompt(chance.randint(0, 2), chance.choice([1, 4, 5, 12, 20, 21, 30]))
        add = Add(f"r{self.num_arrived}", ids, sampling, choices, chance.randint(0, 1))
        self.machine.add(add, constraint if chance.random() < self.share else None)
        self.num_arrived += 1

    def step(self) -> None:
        chance, machine, device = self.chance, self.machine, self.model.device
        if chance.random() < self.arrivals and machine.stats(memory_bytes=0).waiting < 6:
            self.arrive()
        if self.num_arrived and chance.random() < 0.04:
            machine.abort(Abort(f"r{chance.randrange(self.num_arrived)}", chance.choice([None, 0])))
        if self.may_fail and chance.random() < 0.08:
            device.uploads_left = chance.randint(0, 3)
        machine.step()
        machine.check_invariants()
        if chance.random() < 0.15:  # sometimes it is not late
            device.run_until(len(device._queue))

    def end(self) -> Counter[str]:
        self.model.device.uploads_left = None
        finish(self.machine)
        stats = self.machine.stats(memory_bytes=0)
        assert (stats.kv_blocks_used, stats.state_slots_used) == (0, 0)
        return self.machine._runner.checks.counts + Counter(preemptions=stats.preemptions, crowded=self.num_crowded)


def test_rows_draws_and_counts_are_those_of_plain_steps() -> None:
    counts = Counter[str]()
    for seed in range(24):
        with pytest.MonkeyPatch.context() as monkeypatch:
            traffic = Traffic(seed, monkeypatch)
            for _ in range(60):
                traffic.step()
            counts += traffic.end()
    assert counts["same list"] > 200 and counts["whole"] > 300 and counts["void"] > 100, counts
    assert counts["all void"] and counts["groups"] and counts["preemptions"], counts
    assert counts["failed launches"] and counts["failed draws"] and counts["crowded"], counts
