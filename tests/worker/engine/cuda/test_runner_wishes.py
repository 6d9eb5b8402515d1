"""Requests with every mixture of wishes, ahead of their draws: each says what it says alone to an engine that waits."""

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from tests.worker.engine.bracket_constraint import BracketConstraint, RunConstraint
from tests.worker.engine.context_model import Config, ContextModel
from tests.worker.engine.cuda.late_device import LateModel
from tests.worker.engine.generation import EngineStateMachine, engine, finish, ids_of, prompt
from tests.worker.engine.recurrent_model import RecurrentModel
from tests.worker.logprob_records import TokenLogprobs, read
from worker.contract import Add, Choice, Sampling, TokenOutput
from worker.engine import scheduler

CONFIG = Config(vocab_size=37, context_length=64)
SMALL_LIMITS = {
    "kernels.logit_edits.SHORT_PROMPT": 8,
    "worker.engine.logits.edit_rows.SHORT_PROMPT": 8,
    "worker.engine.logits.edit_rows.MAX_BIASES": 16,
    "worker.engine.cuda.buffers.MAX_BIASES": 16,
    "worker.engine.cuda.padded_step.LEAST_TOKENS": 4,
    "worker.engine.cuda.whole_step_graphs.MOST_GRAPHS": 2,
    "worker.engine.cuda.runner.LONG_WAIT_S": math.inf,
    "worker.engine.scheduler.MANY": 3,  # and others, see `MixedTraffic.start`
}
"""With which few graphs are kept, lists of counts and biases are full soon, and steps run as far ahead as ever."""


@pytest.fixture(scope="module", autouse=True)
def small_limits():
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in SMALL_LIMITS.items():
            monkeypatch.setattr(name, value)
        yield


token_ids = st.integers(0, CONFIG.vocab_size - 1)
some_ids = st.lists(token_ids, max_size=4, unique=True).map(tuple)
samplings = st.builds(
    Sampling,
    max_tokens=st.integers(1, 16),
    temperature=st.sampled_from([0.0, 1e-6, 0.8, 2.0]),
    top_k=st.sampled_from([0, 0, 3]),
    top_p=st.sampled_from([1.0, 1.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.7]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.6]),
    frequency_penalty=st.sampled_from([0.0, 0.0, -0.4]),
    logit_bias=st.dictionaries(token_ids, st.sampled_from([-100.0, 2.0]), max_size=4),
    seed=st.integers(0, 2**64 - 1),
    stop_token_ids=some_ids,
    min_tokens=st.sampled_from([0, 0, 3, 9]),
    logprobs=st.sampled_from([None, None, 0, 2, 20]),
    bad_words=st.lists(some_ids.filter(bool), max_size=2).map(tuple),
)
outputs_so_far = st.sampled_from([(), (), (2,), (2, 4, 6), (2, 4, 6, 10, 12)])


constraints = st.sampled_from(
    [
        *[None] * 3,
        BracketConstraint(8),
        BracketConstraint(100),
        RunConstraint(8, 3, is_told=True),
        RunConstraint(100, 5, is_told=True),
        RunConstraint(100, 1, is_told=False),
    ]
)


class MixedTraffic(EngineStateMachine):
    """Random adds, aborts, steps, and launches and late draws that fail halfway."""

    @initialize(
        step_tokens=st.sampled_from([2, 7, 24, 48]),
        cache_tokens=st.integers(64, 120),
        max_sequences=st.integers(1, 5),
        prefix_cache=st.booleans(),
        recompute_at=st.sampled_from([None, 20]),
        has_states=st.booleans(),
        many=st.sampled_from([1, 2, 3, 64]),
    )
    def start(self, recompute_at: int | None, has_states: bool, many: int, **options: object) -> None:
        scheduler.MANY = many
        self.recompute_at, self.has_states = recompute_at, has_states
        self.model = LateModel(self._model())
        self.machine = engine(self.model, **options)
        self.adds: dict[str, tuple[Add, BracketConstraint | None]] = {}
        self.outputs = defaultdict(list)

    @rule(
        family=st.integers(0, 2),
        length=st.sampled_from([1, 4, 8, 12, 19, 20, 21, 24, 40, 45]),
        sampling=samplings,
        outputs=st.lists(outputs_so_far, min_size=1, max_size=3),
        priority=st.integers(0, 2),
        constraint=constraints,
    )
    def add(
        self,
        family: int,
        length: int,
        sampling: Sampling,
        outputs: list[tuple[int, ...]],
        priority: int,
        constraint: BracketConstraint | None,
    ) -> None:
        name = f"r{len(self.adds)}"
        choices = tuple(Choice(index, output) for index, output in enumerate(outputs))
        add = Add(name, prompt(family, length), sampling, choices, priority)
        self.adds[name] = add, constraint
        self.machine.add(add, constraint)

    def _model(self) -> ContextModel:
        return (RecurrentModel if self.has_states else ContextModel)(CONFIG, self.recompute_at)

    @precondition(lambda self: not self.has_states)  # else a step that fails is the end of the engine
    @rule(num_uploads=st.integers(0, 3))
    def fail_soon(self, num_uploads: int) -> None:
        """The upload that comes after so many others raises."""
        self.model.device.uploads_left = num_uploads

    def teardown(self) -> None:
        self.model.device.uploads_left = None
        for key, outputs in finish(self.machine).items():
            self.outputs[key] += outputs
        assert self.outputs.keys() == {
            (name, each.index) for name, (add, _) in self.adds.items() for each in add.choices
        }
        for (name, index), outputs in self.outputs.items():
            assert [output.finish_reason is None for output in outputs] == [True] * (len(outputs) - 1) + [False]
            check_outputs(outputs, self._alone(name, index), self.adds[name][0].sampling.logprobs or 0)
        assert self.machine.stats(memory_bytes=0).kv_blocks_used == 0

    def _alone(self, name: str, index: int) -> list[TokenOutput]:
        add, constraint = self.adds[name]
        machine = engine(self._model())
        machine.add(Add("r", add.prompt_ids, add.sampling, (add.choices[index],)), constraint)
        return finish(machine)["r", index]


def check_outputs(outputs: list[TokenOutput], alone: list[TokenOutput], num_top: int) -> None:
    """All that was to come, or the beginning of it where the request was aborted or the launch failed."""
    last, due = outputs[-1], alone[-1]
    if last.finish_reason == "abort" or "ValueError" in (last.error_message or ""):
        assert ids_of(alone)[: len(ids_of(outputs))] == ids_of(outputs)
    else:
        assert ids_of(outputs) == ids_of(alone)
        assert (last.finish_reason, last.error_message) == (due.finish_reason, due.error_message)
    for one, other in zip(logprobs_of(outputs, num_top), logprobs_of(alone, num_top), strict=False):
        assert one.top_ids == other.top_ids
        assert np.allclose((one.logprob, *one.top_logprobs), (other.logprob, *other.top_logprobs), atol=1e-3)


def logprobs_of(outputs: list[TokenOutput], num_top: int) -> list[TokenLogprobs]:
    return [each for output in outputs for each in read(output.logprobs, num_top)]


TestMixedTraffic = MixedTraffic.TestCase
TestMixedTraffic.settings = settings(max_examples=15, stateful_step_count=25)
