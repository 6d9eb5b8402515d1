"""What is done to logits on the device besides the draw: penalties, biases, banned ids, masks, log probabilities."""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.batch import Adjustments, AnyArray, Memory, pack, packed_bytes, view
from kernels.devices.protocol import AnyOps, GpuDevice
from kernels.ops.sampling import MAX_TOP
from kernels.runtime.device_array import DeviceArray
from orcd.errors import OrcdError
from orcd.sampling import MAX_LOGPROBS
from worker.contract import TokenLogprobs
from worker.engine.cuda.pinned_ring import Download, DownloadRing, UploadRing
from worker.engine.logits.penalties import build_adjustments
from worker.engine.logits.token_masks import TokenMasks, constrained_rows, num_mask_words
from worker.engine.sequence import Sequence

MAX_EDITS = 1 << 17
"""Edits of logits that go to the device at a time: with more, several times."""

assert MAX_LOGPROBS <= MAX_TOP, "a request may ask for more log probabilities than the kernel can report"

_PER_EDIT = ("rows", "token_ids", "bias", "seen", "output_counts", "banned")


def edit_bytes(max_rows: int) -> int:
    """Bytes of `MAX_EDITS` edits of logits, and of the penalties of ``max_rows``."""
    return packed_bytes([MAX_EDITS * size for size in (4, 4, 4, 1, 4, 1)] + [max_rows * 4] * 3)


class LogitProcessor:
    """Applies what requests ask to have changed in their logits."""

    def __init__(self, device: GpuDevice, memory: DeviceArray, timeout_s: float) -> None:
        self._ops = device.ops
        self._edits = memory
        self._uploads = UploadRing(device, memory.shape[0], timeout_s)

    def apply(self, logits: AnyArray, sequences: list[Sequence]) -> None:
        """Edit ``logits`` [R, vocab] of the R ``sequences`` where they are."""
        adjustments = build_adjustments(sequences)
        for start in range(0, adjustments.rows.size, MAX_EDITS):
            some = replace(
                adjustments, **{name: getattr(adjustments, name)[start : start + MAX_EDITS] for name in _PER_EDIT}
            )
            self._ops.adjust_logits(logits, self._send(some), out=logits)

    def _send(self, adjustments: Adjustments[NDArray[Any]]) -> Adjustments[DeviceArray]:
        arrays = {field.name: getattr(adjustments, field.name) for field in fields(adjustments)}
        num_bytes, offsets = pack(arrays, self._uploads.take())
        self._uploads.send(num_bytes, self._edits)
        return Adjustments(
            **{name: view(self._edits, offsets[name], array.shape, array.dtype) for name, array in arrays.items()}
        )


def mask_bytes(max_rows: int, vocab_size: int) -> int:
    """Bytes of the masks of ``max_rows``, and of the numbers of these rows."""
    return max_rows * (num_mask_words(vocab_size) + 1) * 4


class LogitMasker:
    """Leaves of logits what the constraints of their sequences allow."""

    def __init__(self, device: GpuDevice, memory: DeviceArray, timeout_s: float) -> None:
        self._ops = device.ops
        self._memory = memory
        self._uploads = UploadRing(device, memory.shape[0], timeout_s)
        self._token_masks = TokenMasks()

    def apply(self, logits: AnyArray, sequences: Series[Sequence]) -> dict[int, OrcdError]:
        """Mask ``logits`` [R, vocab] of the R ``sequences`` where they are; the errors of rows that can draw nothing.

        The masks are written here, while the device is still at work on what was enqueued before.
        """
        rows = constrained_rows(sequences)
        if not rows:
            return {}
        num_words = num_mask_words(logits.shape[1])
        shape, rows_start = (len(rows), num_words), len(rows) * num_words * 4
        staging = self._uploads.take()
        errors = self._token_masks.write(sequences, rows, view(staging, 0, shape, np.uint32))
        view(staging, rows_start, (len(rows),), np.int32)[:] = rows
        self._uploads.send(rows_start + len(rows) * 4, self._memory)
        on_device = view(self._memory, rows_start, (len(rows),), np.int32)
        self._ops.mask_logits(logits, on_device, view(self._memory, 0, shape, np.uint32), out=logits)
        return errors


def report_bytes(num_rows: int) -> int:
    """Bytes of the log probabilities of ``num_rows``: of what was drawn, and of the likeliest ones with their ids."""
    return num_rows * 4 * (1 + 2 * MAX_LOGPROBS)


def report(ops: AnyOps, logits: AnyArray, ids: DeviceArray, reports: DeviceArray) -> None:
    """Put the log probabilities of the rows of ``logits`` [R, vocab] into ``reports``; ``ids`` [R] were drawn."""
    logprobs, top_ids, top_logprobs = _split(reports, ids.shape[0])
    ops.top_log_probabilities(
        logits, ids, MAX_LOGPROBS, out_logprobs=logprobs, out_top_ids=top_ids, out_top_logprobs=top_logprobs
    )


class LogprobReporter:
    """Takes the log probabilities of drawn tokens and of the most probable ones to the host."""

    def __init__(self, device: GpuDevice, memory: DeviceArray) -> None:
        self._ops = device.ops
        self._reports = memory
        self._downloads = DownloadRing(device, memory.shape[0])

    def fetch(self, logits: AnyArray, ids: DeviceArray) -> Download:
        """Enqueue the reports of the rows of ``logits`` [R, vocab], of which ``ids`` [R] were drawn."""
        report(self._ops, logits, ids, self._reports)
        return self._downloads.fetch(view(self._reports, 0, (report_bytes(ids.shape[0]),), np.uint8))


def read_reports(reports: Download, sequences: Series[Sequence], timeout_s: float) -> list[TokenLogprobs | None]:
    """What each of the R sequences asked for; waits for it."""
    logprobs, top_ids, top_logprobs = _split(reports.read(timeout_s), len(sequences))
    wanted = [sequence.sampling.logprobs for sequence in sequences]
    return [
        None
        if num_top is None
        else _logprobs(float(logprobs[row]), top_ids[row, :num_top], top_logprobs[row, :num_top])
        for row, num_top in enumerate(wanted)
    ]


def _split(reports: Memory, num_rows: int) -> tuple[Memory, Memory, Memory]:
    """Log probabilities [R] float32, the likeliest ids [R, MAX_LOGPROBS] int32 and theirs, in one buffer of bytes."""
    table = (num_rows, MAX_LOGPROBS)
    return (
        view(reports, 0, (num_rows,), np.float32),
        view(reports, num_rows * 4, table, np.int32),
        view(reports, num_rows * 4 * (1 + MAX_LOGPROBS), table, np.float32),
    )


def _logprobs(logprob: float, top_ids: NDArray[np.int32], top_logprobs: NDArray[np.float32]) -> TokenLogprobs:
    there = np.isfinite(top_logprobs)  # fewer may be drawn than were asked for, or be in the vocabulary
    return TokenLogprobs(logprob, tuple(top_ids[there].tolist()), tuple(top_logprobs[there].tolist()))
