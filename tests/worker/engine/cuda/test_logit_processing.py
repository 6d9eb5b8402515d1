from importlib.util import find_spec, module_from_spec

import numpy as np
import pytest

from kernels.batch import GREEDY_ROW, IN_PROMPT, SAMPLING_ROW, SamplingParams
from kernels.logit_edits import EditResetList, allocate_edits, count_tokens, reset_bytes
from kernels.ops import sampling
from kernels.reference.sampling import mask_logits
from orcd.sampling import MAX_LOGPROBS
from tests.worker.engine.bracket_constraint import BracketConstraint, FailingConstraint
from tests.worker.engine.cuda.late_device import LateDevice
from tests.worker.engine.generation import sequence
from tests.worker.logprob_records import TokenLogprobs, read
from worker.engine.cuda.logit_processing import (
    EditSender,
    LogitMasker,
    LogprobReporter,
    mask_bytes,
    read_reports,
    report_bytes,
)
from worker.engine.token_constraint import Asked, TokenMask


def test_rows_of_edits_begin_with_what_was_sent():
    device = LateDevice()
    edits = allocate_edits(device.step_buffers, 3, 8, max_biases=4)
    sender = EditSender(device, edits, np.zeros(reset_bytes(3, 16), np.uint8), timeout_s=1)
    resets = EditResetList()
    resets.put(2, count_tokens([1, 1, 5], [5, 5, 6]), {3: -1.5}, (7,))
    resets.put(0, count_tokens([], []), {}, ())
    sender.send(resets)
    device.run_until(len(device._queue))
    assert edits.counts[2].tolist() == [0, IN_PROMPT, 0, 0, 0, IN_PROMPT + 2, 1, 0]
    assert edits.counts[0].tolist() == [0] * 8
    assert edits.biases[2, :2].tolist() == [(3, -1.5), (7, 0.0)]


@pytest.mark.parametrize("num_steps", [1, 5])
def test_masks_leave_what_the_reference_leaves_of_constrained_rows_alone(num_steps: int):
    device = LateDevice()
    masker = make_masker(device, max_rows=4, vocab_size=40)
    sequences = {row: sequence([1], [0]) for row in (1, 3)}
    for each in sequences.values():
        each.constraint = BracketConstraint(9)
    logits = np.random.default_rng(0).normal(size=(num_steps, 4, 40)).astype(np.float32)
    expected = logits.copy()
    for step in logits:
        assert masker.send([*sequences], [*sequences.values()]) == {}
        masker.apply(step)
    np.testing.assert_array_equal(logits[-1], expected[-1])  # the device has not come to it yet
    device.run_until(len(device._queue))
    for step in expected:
        mask_logits(step, np.array([-1, 0, -1, 0], np.int32), np.full((1, 2), 0x55555555, np.uint32), out=step)
    np.testing.assert_array_equal(logits, expected)
    assert np.isfinite(logits[:, [0, 2]]).all()


def make_masker(device: LateDevice, *, max_rows: int, vocab_size: int) -> LogitMasker:
    memory = np.full(mask_bytes(max_rows, vocab_size), 0xFF, np.uint8)
    return LogitMasker(device, memory, max_rows=max_rows, vocab_size=vocab_size, timeout_s=1)


def test_that_there_are_no_masks_is_sent_once_until_there_were_some():
    device = LateDevice()
    masker = make_masker(device, max_rows=2, vocab_size=8)
    masker.send([], [])
    masker.send([], [])
    assert device.num_uploads == 1
    constrained = sequence([1], [0])
    constrained.constraint = BracketConstraint(9)
    masker.send([1], [constrained])
    masker.send([], [])
    assert device.num_uploads == 4
    logits = np.ones((2, 8), np.float32)
    masker.apply(logits)
    device.run_until(len(device._queue))
    assert (logits == 1).all()


def test_rows_that_can_draw_nothing_are_told_by_their_number():
    device = LateDevice()
    masker = make_masker(device, max_rows=3, vocab_size=8)
    sequences = {1: sequence([1], [0]), 2: sequence([1], [0])}
    sequences[1].constraint, sequences[2].constraint = BracketConstraint(9), FailingConstraint("write_mask")
    logits = np.zeros((3, 8), np.float32)
    assert list(masker.send([*sequences], [*sequences.values()])) == [2]
    masker.apply(logits)
    device.run_until(len(device._queue))
    assert (logits[2] == -np.inf).all()


class KeptMasks:
    """Gives every sequence the same masks, and single ids, in turn."""

    def __init__(self, masks: list[TokenMask | int]) -> None:
        self.answers = masks

    def masks(self, asked: list[Asked]) -> list[TokenMask | int | Exception]:
        return [self.answers[num_left % len(self.answers)] for _, num_left in asked]


def test_a_mask_that_rows_have_again_is_not_sent_again_and_one_that_had_to_make_room_is():
    device = LateDevice()
    masker = make_masker(device, max_rows=2, vocab_size=40)
    kept = KeptMasks([TokenMask(np.array([1 << bit, 0], np.uint32).tobytes()) for bit in range(32)])
    uploads = []
    for step in range(700):
        sequences = {row: sequence([1], [0] * (step // 2 % 3 * row)) for row in (0, 1)}
        for each in sequences.values():
            each.constraint = BracketConstraint(9)
            each.constraint.batch = kept
        if step >= 20:  # others each time
            kept.answers = [TokenMask(mask.words) for mask in kept.answers] if step % 2 else kept.answers
        logits, before = np.zeros((2, 40), np.float32), device.num_uploads
        assert masker.send([*sequences], [*sequences.values()]) == {}
        masker.apply(logits)
        device.run_until(len(device._queue))
        expected = [[each.num_left % 32] for each in sequences.values()]
        assert [np.flatnonzero(np.isfinite(row)).tolist() for row in logits] == expected, step
        uploads.append(device.num_uploads - before)
    assert uploads[6:20] == [1] * 14
    assert set(uploads[20:]) == {1, 2}


def test_an_id_that_alone_may_come_needs_no_mask():
    device = LateDevice()
    masker = make_masker(device, max_rows=2, vocab_size=40)
    masker.send([], [])
    constrained = sequence([1], [0])
    constrained.constraint = BracketConstraint(9)
    constrained.constraint.batch = KeptMasks([33])
    before, logits = device.num_uploads, np.zeros((2, 40), np.float32)
    assert masker.send([1], [constrained]) == {}
    assert device.num_uploads == before + 1
    masker.apply(logits)
    device.run_until(len(device._queue))
    assert np.isfinite(logits[0]).all()
    assert np.flatnonzero(np.isfinite(logits[1])).tolist() == [33]


def test_after_a_failure_masks_are_sent_anew():
    device = LateDevice()
    masker = make_masker(device, max_rows=2, vocab_size=40)
    constrained = sequence([1], [0])
    constrained.constraint = BracketConstraint(9)
    constrained.constraint.batch = KeptMasks([TokenMask(np.array([2, 0], np.uint32).tobytes())])
    device.uploads_left = 0
    with pytest.raises(ValueError, match="secret"):
        masker.send([0], [constrained])
    masker.forget()
    logits = np.zeros((2, 40), np.float32)
    masker.send([0], [constrained])
    masker.apply(logits)
    device.run_until(len(device._queue))
    assert np.flatnonzero(np.isfinite(logits[0])).tolist() == [1]


def report(logits: np.ndarray, ids: list[int], *num_tops: int | None) -> list[TokenLogprobs | None]:
    """What rows that ask for so many alternatives are told."""
    device = LateDevice()
    num_rows = len(num_tops)
    reporter = LogprobReporter(device, np.zeros(report_bytes(num_rows), np.uint8))
    rows = np.frombuffer(GREEDY_ROW * num_rows, SAMPLING_ROW).copy()
    rows["logprobs"] = [-1 if num_top is None else num_top for num_top in num_tops]
    reporter.report(logits, np.array(ids, np.int32), SamplingParams(rows, np.zeros(num_rows, np.int64)))
    told = read_reports(reporter.fetch(num_rows), num_rows, list(enumerate(num_tops)), 1)
    return [None if num_top is None else read(told[row], num_top)[0] for row, num_top in enumerate(num_tops)]


def test_reports_hold_what_each_row_asked_for():
    logits = np.array([[1.0, 2.0, 0.5, 2.0]] * 3, np.float32)
    expected = np.log(np.exp(logits[0]) / np.exp(logits[0]).sum())
    silent, chosen_only, top_three = report(logits, [0, 1, 2], None, 0, 3)
    assert silent is None
    assert chosen_only is not None and top_three is not None
    assert chosen_only.top_ids == ()
    assert chosen_only.logprob == pytest.approx(expected[1], abs=1e-6)
    assert top_three.top_ids == (1, 3, 0)
    assert top_three.top_logprobs == pytest.approx(expected[[1, 3, 0]], abs=1e-6)


def test_reports_of_prompts_come_behind_those_of_draws():
    device = LateDevice()
    logits = np.array([[1.0, 2.0, 0.5, 2.0], [0.0, 3.0, 1.0, 1.0], [4.0, 0.0, 0.0, 1.0]], np.float32)
    expected = np.log(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    rows = np.frombuffer(GREEDY_ROW * 3, SAMPLING_ROW).copy()
    rows["logprobs"] = [1, 0, 2]
    params = SamplingParams(rows, np.zeros(3, np.int64))
    reporter = LogprobReporter(device, np.zeros(report_bytes(5), np.uint8))
    reporter.report_prompts(logits, np.array([2, 3], np.int32), params)
    reporter.report(logits[:1], np.array([0], np.int32), params.first(1))
    download = reporter.fetch(3)
    [drawn] = read(read_reports(download, 1, [(0, 1)], 1)[0], 1)
    behind = read_reports(download, 2, [(0, 0), (1, 2)], 1, num_before=1)
    [first], [second] = read(behind[0], 0), read(behind[1], 2)
    assert (drawn.top_ids, first.top_ids, second.top_ids) == ((1,), (), (0, 3))
    found = [drawn.logprob, first.logprob, second.logprob]
    assert found == pytest.approx([expected[0, 0], expected[1, 2], expected[2, 3]], abs=1e-6)


def test_a_vocabulary_smaller_than_what_was_asked_for_gives_all_it_has():
    [told] = report(np.zeros((1, 3), np.float32), [0], 20)
    assert told is not None
    assert told.top_ids == (0, 1, 2)


def test_the_kernels_can_report_as_many_log_probabilities_as_requests_may_ask_for():
    assert MAX_LOGPROBS <= sampling.MAX_TOP


def test_the_module_does_not_load_with_kernels_that_can_report_fewer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sampling, "MAX_TOP", MAX_LOGPROBS - 1)
    spec = find_spec("worker.engine.cuda.logit_processing")
    assert spec is not None and spec.loader is not None
    with pytest.raises(AssertionError, match="more log probabilities than the kernel can report"):
        spec.loader.exec_module(module_from_spec(spec))
