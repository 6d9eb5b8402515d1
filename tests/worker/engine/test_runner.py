from collections.abc import Sequence as Series

import numpy as np
import pytest

from kernels.batch import GREEDY_ROW, SAMPLING_ROW, SamplingParams
from kernels.reference.sampling import sample
from orcd.errors import CudaError, OrcdError, VramOom
from tests.worker.engine.context_model import ContextModel, check_prefixes
from tests.worker.engine.generation import SAMPLINGS, engine, generate, sequence
from tests.worker.engine.generation import prompt as prompt_of
from tests.worker.engine.recurrent_model import RecurrentModel
from tests.worker.logprob_records import TokenLogprobs, read
from worker.contract import Add, Choice
from worker.engine.cohort import Draw
from worker.engine.runner import Result, SynchronousRunner, run_alone
from worker.engine.sequence import Chunk, Sequence


class FixedLogits(ContextModel):
    """Gives the same logits to everybody."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, step, cache):
        return np.array([self.logits] * len(step.logit_rows), np.float32)


def run(runner: SynchronousRunner, *chunks: Chunk) -> Series[Result]:
    runner.launch(list(chunks))
    return runner.collect()


def draw(logits: list[float], *sequences: Sequence) -> Series[Result]:
    runner = SynchronousRunner(FixedLogits(logits), num_blocks=4, block_tokens=4, max_sequences=8)
    return run(runner, *(Chunk(each, each.num_pending, True) for each in sequences))


def test_only_chunks_that_reach_the_last_token_draw():
    runner = SynchronousRunner(ContextModel(), num_blocks=4, block_tokens=4, max_sequences=8)
    unfinished, finished = sequence([1, 2, 3, 4], [0]), sequence([1, 2, 3], [1])
    first, second = run(runner, Chunk(unfinished, 2, False), Chunk(finished, 3, True))
    assert first is None
    assert isinstance(second, int)


def test_steps_are_collected_in_the_order_of_their_launch():
    runner = SynchronousRunner(ContextModel(), num_blocks=4, block_tokens=4, max_sequences=8)
    unfinished, finished = sequence([1, 2, 3, 4], [0]), sequence([1, 2, 3], [1])
    runner.launch([Chunk(unfinished, 2, False)])
    with pytest.raises(AssertionError):
        runner.launch([Chunk(sequence([1, 2, 3], []), 3, True)])  # without a block: it fails, and is no step
    runner.launch([Chunk(finished, 3, True)])
    assert runner.collect() == [None]
    assert isinstance(runner.collect()[0], int)


def test_a_step_names_sequences_that_begin_with_the_same_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("worker.engine.runner.SHARED_TOKENS", 8)
    model, steps = ContextModel(), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda step, cache: steps.append(step) or forward(step, cache))
    prompt = prompt_of(0, 20)
    adds = [Add(f"r{number}", (*prompt, number), SAMPLINGS[number % 2]) for number in range(4)]
    adds.append(Add("choices", prompt_of(1, 9), SAMPLINGS[1], (Choice(0), Choice(1))))
    together = generate(adds, engine(model))
    assert sum(check_prefixes(step, step.prefixes, 4) for step in steps if step.prefixes is not None) > 10
    for add in adds:
        for key, result in generate([add]).items():
            assert together[key] == result


def test_penalties_look_at_the_right_tokens():
    logits = [1.0, 0.9, 0.8, 0.1]
    repeated = sequence([0, 0, 1], [0], num_prompt=2, repetition_penalty=2.0)  # prompt and output count
    present = sequence([0, 0, 1], [1], num_prompt=2, presence_penalty=0.5)  # only the output counts
    frequent = sequence([2, 0, 0, 1], [2], num_prompt=1, frequency_penalty=0.15)
    assert draw(logits, repeated, present, frequent) == [2, 0, 2]


def test_bias_and_min_tokens_decide_what_can_be_drawn():
    logits = [1.0, 0.9, 0.8, 0.1]
    biased = sequence([0], [0], logit_bias={3: 5.0})
    held_open = sequence([0], [1], stop_token_ids=(0, 1), min_tokens=1)
    free_to_end = sequence([0, 1], [2], num_prompt=1, stop_token_ids=(0, 1), min_tokens=1)
    assert draw(logits, biased, held_open, free_to_end) == [3, 2, 0]


def test_logprobs_are_those_of_the_softmax_and_absent_unless_asked_for():
    logits = [1.0, 2.0, 0.5, 2.0]
    expected = np.log(np.exp(logits) / np.exp(logits).sum())
    silent, chosen_only, top_three = draw(
        logits, sequence([0], [0]), sequence([0], [1], logprobs=0), sequence([0], [2], logprobs=3)
    )
    assert silent == 1
    assert read(chosen_only.logprobs, 0) == [TokenLogprobs(pytest.approx(expected[1], abs=1e-6))]
    [told] = read(top_three.logprobs, 3)
    assert told.top_ids == (1, 3, 0)
    assert told.top_logprobs == pytest.approx(expected[[1, 3, 0]], abs=1e-6)


def test_choices_draw_with_consecutive_seeds_that_wrap_around():
    logits = np.zeros(32).tolist()
    last = sequence([0], [0], seed=2**64 - 1, temperature=1.0, choice=1)
    first = sequence([0], [1], seed=0, temperature=1.0)
    other = sequence([0], [2], seed=1, temperature=1.0)
    ids = draw(logits, last, first, other)
    assert ids[0] == ids[1] != ids[2]


def test_the_draw_is_a_function_of_key_and_position_in_the_output():
    logits = np.zeros((8, 32), np.float32)
    rows = np.frombuffer(GREEDY_ROW * 8, SAMPLING_ROW).copy()
    rows["key"], rows["temperature"] = 9, 1
    expected = np.empty(8, np.int32)
    sample(logits, SamplingParams(rows, np.arange(8)), out_ids=expected)
    sequences = [
        sequence([1, 2] + [5] * n, [0, 1, 2], num_prompt=2, seed=7, choice=2, temperature=1.0) for n in range(8)
    ]
    assert draw(logits[0].tolist(), *sequences) == expected.tolist()
    assert len(set(expected.tolist())) > 1


def test_non_finite_logits_are_an_error_of_their_row_alone():
    runner = SynchronousRunner(ContextModel(poison_id=7), num_blocks=4, block_tokens=4, max_sequences=8)
    healthy, poisoned = sequence([1, 2], [0], logprobs=1), sequence([1, 7], [1], logprobs=1)
    first, second = run(runner, Chunk(healthy, 2, True), Chunk(poisoned, 2, True))
    assert isinstance(first, Draw)
    assert isinstance(second, OrcdError)
    assert "non-finite" in second.message


def recurrent_runner(model: RecurrentModel) -> SynchronousRunner:
    return SynchronousRunner(model, num_blocks=4, block_tokens=4, max_sequences=8, num_states=4)


def with_state(token_ids: list[int], number: int, *, source: int | None = None, num_computed: int = 0) -> Sequence:
    """A sequence whose block and state slot have this number."""
    each = sequence(token_ids, [number])
    each.state_slot, each.state_source, each.num_computed = number, source, num_computed
    return each


def test_a_step_that_raises_leaves_all_states_as_they_were():
    runner = recurrent_runner(RecurrentModel(crash_id=9))
    going_on, other = with_state([1, 2, 3], 0), with_state([4, 5, 9], 1)
    run(runner, Chunk(going_on, 2, False), Chunk(other, 2, False))
    states = runner._states
    before = [array.copy() for array in states]
    for each in (going_on, other):
        each.num_computed, each.state_source = 2, each.state_slot
    new = with_state([6, 7], 2)
    with pytest.raises(ValueError, match="secret"):
        runner.launch([Chunk(going_on, 1, True), Chunk(other, 1, True), Chunk(new, 2, True)])
    for array, old in zip(states, before, strict=True):
        np.testing.assert_array_equal(array[:2], old[:2])
    (alone,) = run(runner, Chunk(going_on, 1, True))
    (expected,) = run(recurrent_runner(RecurrentModel()), Chunk(with_state([1, 2, 3], 0), 3, True))
    assert alone == expected


def test_a_step_that_raises_can_be_run_again_from_a_snapshot():
    model = RecurrentModel()
    runner = recurrent_runner(model)
    run(runner, Chunk(with_state([1, 2, 3, 4, 5], 0), 4, False))
    after = with_state([1, 2, 3, 4, 5], 1, source=0, num_computed=4)
    after.block_ids = [0, 1]
    model.crash_id = 5
    with pytest.raises(ValueError, match="secret"):
        runner.launch([Chunk(after, 1, True)])
    model.crash_id = None
    (drawn,) = run(runner, Chunk(after, 1, True))
    whole = with_state([1, 2, 3, 4, 5], 0)
    whole.block_ids = [0, 1]
    assert run(recurrent_runner(RecurrentModel()), Chunk(whole, 5, True)) == [drawn]


class FailingModel(FixedLogits):
    def __init__(self, error: Exception) -> None:
        super().__init__([0.0, 1.0])
        self.error = error

    def forward(self, step, cache):
        raise self.error


def test_a_chunk_that_is_run_alone_gives_its_result_or_its_error_unless_the_device_is_lost():
    chunk = Chunk(sequence([1, 2], [0]), 2, True)

    def runner(model: ContextModel) -> SynchronousRunner:
        return SynchronousRunner(model, num_blocks=4, block_tokens=4, max_sequences=8)

    assert run_alone(runner(FixedLogits([0.0, 1.0])), chunk) == 1
    assert isinstance(run_alone(runner(FailingModel(MemoryError())), chunk), VramOom)
    with pytest.raises(CudaError):
        run_alone(runner(FailingModel(CudaError("lost"))), chunk)
