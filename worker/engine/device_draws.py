"""Draws on the device that need more than the logits: penalties, biases, banned ids, log probabilities."""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.reference.sampling import Adjustments
from kernels.step import DeviceArray, pack, view
from worker.contract import TokenLogprobs
from worker.engine.adjustments import build_adjustments
from worker.engine.sequence import Sequence
from worker.engine.staging import Download, DownloadRing, UploadRing
from worker.engine.step_memory import MAX_EDITS, report, report_bytes, split_reports

_PER_ENTRY = ("rows", "token_ids", "bias", "seen", "output_counts", "banned")


class LogitEdits:
    """Applies what requests ask to have changed in their logits."""

    def __init__(self, device: Any, memory: DeviceArray, timeout_s: float) -> None:
        self._device = device
        self._edits = memory
        self._uploads = UploadRing(device, memory.shape[0], timeout_s)

    def apply(self, logits: DeviceArray, sequences: list[Sequence]) -> None:
        """Edit ``logits`` [R, vocab] of the R ``sequences`` where they are."""
        adjustments = build_adjustments(sequences)
        for start in range(0, adjustments.rows.size, MAX_EDITS):
            part = replace(
                adjustments, **{name: getattr(adjustments, name)[start : start + MAX_EDITS] for name in _PER_ENTRY}
            )
            self._device.ops.adjust_logits(logits, self._send(part), out=logits)

    def _send(self, adjustments: Adjustments) -> Adjustments:
        arrays = {field.name: getattr(adjustments, field.name) for field in fields(adjustments)}
        num_bytes, offsets = pack(arrays, self._uploads.take())
        self._uploads.send(num_bytes, self._edits)
        return Adjustments(
            **{name: view(self._edits, offsets[name], array.shape, array.dtype) for name, array in arrays.items()}
        )


class LogprobReports:
    """Takes the log probabilities of drawn tokens and of the most probable ones to the host."""

    def __init__(self, device: Any, memory: DeviceArray) -> None:
        self._device = device
        self._results = memory
        self._downloads = DownloadRing(device, memory.shape[0])

    def fetch(self, logits: DeviceArray, ids: DeviceArray) -> Download:
        """Enqueue the reports of the rows of ``logits`` [R, vocab], of which ``ids`` [R] were drawn."""
        report(self._device, logits, ids, self._results)
        return self._downloads.fetch(view(self._results, 0, (report_bytes(ids.shape[0]),), np.uint8))


def read_reports(report: Download, sequences: Series[Sequence], timeout_s: float) -> list[TokenLogprobs | None]:
    """What each of the R sequences asked for."""
    logprobs, top_ids, top_logprobs = split_reports(report.read(timeout_s), len(sequences))
    wanted = [sequence.sampling.logprobs for sequence in sequences]
    return [
        None if num_top is None else _report(float(logprobs[row]), top_ids[row, :num_top], top_logprobs[row, :num_top])
        for row, num_top in enumerate(wanted)
    ]


def _report(logprob: float, top_ids: NDArray[np.int32], top_logprobs: NDArray[np.float32]) -> TokenLogprobs:
    there = top_ids >= 0  # a vocabulary may be smaller than what was asked for
    return TokenLogprobs(logprob, tuple(top_ids[there].tolist()), tuple(top_logprobs[there].tolist()))
