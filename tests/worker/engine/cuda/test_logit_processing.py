from importlib.util import find_spec, module_from_spec

import numpy as np
import pytest

from kernels.ops import sampling
from kernels.reference.sampling import adjust_logits, mask_logits
from orcd.sampling import MAX_LOGPROBS
from tests.worker.engine.bracket_constraint import BracketConstraint, FailingConstraint
from tests.worker.engine.cuda.late_device import LateDevice
from tests.worker.engine.generation import sequence
from worker.engine.cuda import logit_processing
from worker.engine.cuda.logit_processing import (
    LogitMasker,
    LogitProcessor,
    LogprobReporter,
    edit_bytes,
    mask_bytes,
    read_reports,
    report_bytes,
)
from worker.engine.logits.penalties import build_adjustments

SEQUENCES = [
    sequence([1, 2], [0], logit_bias={3: 5.0, 0: -2.0}),
    sequence([2, 2, 1], [1], num_prompt=1, repetition_penalty=1.5, presence_penalty=0.5),
]


def random_logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(SEQUENCES), 8)).astype(np.float32)


@pytest.mark.parametrize("max_edits", [1, 3, 100])
def test_edits_change_what_the_reference_changes_however_many_go_up_at_a_time(
    max_edits: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(logit_processing, "MAX_EDITS", max_edits)
    device = LateDevice()
    memory = np.zeros(edit_bytes(len(SEQUENCES)), np.uint8)
    logits, expected = random_logits(), random_logits()
    LogitProcessor(device, memory, timeout_s=1).apply(logits, SEQUENCES)
    device.run_until(len(device._queue))
    adjust_logits(expected, build_adjustments(SEQUENCES), out=expected)
    np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize("num_steps", [1, 5])
def test_masks_leave_what_the_reference_leaves_of_constrained_rows_alone(num_steps: int):
    device = LateDevice()
    memory = np.full(mask_bytes(4, 40), 0xFF, np.uint8)
    masker = LogitMasker(device, memory, timeout_s=1)
    sequences = [sequence([1], [0]) for _ in range(4)]
    sequences[1].constraint, sequences[3].constraint = BracketConstraint(9), BracketConstraint(9)
    logits = np.random.default_rng(0).normal(size=(num_steps, 4, 40)).astype(np.float32)
    expected = logits.copy()
    for step in logits:
        assert masker.apply(step, sequences) == {}
    np.testing.assert_array_equal(logits[-1], expected[-1])  # the device has not come to it yet
    device.run_until(len(device._queue))
    for step in expected:
        mask_logits(step, np.array([1, 3], np.int32), np.full((2, 2), 0x55555555, np.uint32), out=step)
    np.testing.assert_array_equal(logits, expected)
    assert np.isfinite(logits[:, [0, 2]]).all()


def test_without_constraints_nothing_is_sent():
    device = LateDevice()
    masker = LogitMasker(device, np.zeros(mask_bytes(2, 8), np.uint8), timeout_s=1)
    assert masker.apply(random_logits(), SEQUENCES) == {}
    assert (device.num_uploads, len(device._queue)) == (0, 0)


def test_rows_that_can_draw_nothing_are_told_by_their_number():
    device = LateDevice()
    masker = LogitMasker(device, np.zeros(mask_bytes(3, 8), np.uint8), timeout_s=1)
    sequences = [sequence([1], [0]) for _ in range(3)]
    sequences[1].constraint, sequences[2].constraint = BracketConstraint(9), FailingConstraint("write_mask")
    logits = np.zeros((3, 8), np.float32)
    assert list(masker.apply(logits, sequences)) == [2]
    device.run_until(len(device._queue))
    assert (logits[2] == -np.inf).all()


def test_reports_hold_what_each_sequence_asked_for():
    device = LateDevice()
    reporter = LogprobReporter(device, np.zeros(report_bytes(3), np.uint8))
    logits = np.array([[1.0, 2.0, 0.5, 2.0]] * 3, np.float32)
    expected = np.log(np.exp(logits[0]) / np.exp(logits[0]).sum())
    asking = [sequence([0], [0]), sequence([0], [1], logprobs=0), sequence([0], [2], logprobs=3)]
    silent, chosen_only, top_three = read_reports(reporter.fetch(logits, np.array([0, 1, 2], np.int32)), asking, 1)
    assert silent is None
    assert chosen_only is not None and top_three is not None
    assert chosen_only.top_ids == ()
    assert chosen_only.logprob == pytest.approx(expected[1], abs=1e-6)
    assert top_three.top_ids == (1, 3, 0)
    assert top_three.top_logprobs == pytest.approx(expected[[1, 3, 0]], abs=1e-6)


def test_a_vocabulary_smaller_than_what_was_asked_for_gives_all_it_has():
    device = LateDevice()
    reporter = LogprobReporter(device, np.zeros(report_bytes(1), np.uint8))
    download = reporter.fetch(np.zeros((1, 3), np.float32), np.zeros(1, np.int32))
    (report,) = read_reports(download, [sequence([0], [0], logprobs=20)], 1)
    assert report is not None
    assert report.top_ids == (0, 1, 2)


def test_the_kernels_can_report_as_many_log_probabilities_as_requests_may_ask_for():
    assert MAX_LOGPROBS <= sampling.MAX_TOP


def test_the_module_does_not_load_with_kernels_that_can_report_fewer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sampling, "MAX_TOP", MAX_LOGPROBS - 1)
    spec = find_spec("worker.engine.cuda.logit_processing")
    assert spec is not None and spec.loader is not None
    with pytest.raises(AssertionError, match="more log probabilities than the kernel can report"):
        spec.loader.exec_module(module_from_spec(spec))
