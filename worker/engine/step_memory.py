"""The device memory that steps need beside the model's: all of it taken at start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.matmul_shapes import tokens_of_shapes
from kernels.step import DecodeRows, DeviceArray, Draws, allocate_rows, dry_step, first, packed_bytes, view
from worker.engine.admission import MAX_LOGPROBS
from worker.engine.graphs import draw, make_buckets
from worker.model.adapters import Model

MAX_EDITS = 1 << 17
"""Edits of logits that go to the device at a time: with more, several times."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the largest step holds."""

    block_tokens: int
    step_tokens: int
    max_sequences: int
    max_sequence_tokens: int

    @property
    def max_blocks(self) -> int:
        """Blocks of the longest sequence."""
        return -(-self.max_sequence_tokens // self.block_tokens)

    @property
    def whole_step_bytes(self) -> int:
        """Bytes of all arrays of the largest step and its draws."""
        tokens, sequences = self.step_tokens * 4, self.max_sequences * 4
        draws = [sequences] * 4 + [2 * sequences] * 2
        per_sequence = [sequences + 4, sequences, sequences, sequences, sequences * self.max_blocks]
        return packed_bytes([tokens] * 4 + per_sequence + draws)

    @property
    def edit_bytes(self) -> int:
        """Bytes of `MAX_EDITS` edits of logits, and of the penalties of all rows."""
        return packed_bytes([MAX_EDITS * size for size in (4, 4, 4, 1, 4, 1)] + [self.max_sequences * 4] * 3)

    @property
    def report_bytes(self) -> int:
        """Bytes of the log probabilities of all rows."""
        return report_bytes(self.max_sequences)


def report_bytes(num_rows: int) -> int:
    """Bytes of the log probabilities of ``num_rows``: of what was drawn, and of the likeliest ones with their ids."""
    return num_rows * 4 * (1 + 2 * MAX_LOGPROBS)


def split_reports(reports: DeviceArray, num_rows: int) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    """Log probabilities [R] float32, the likeliest ids [R, MAX_LOGPROBS] int32 and theirs, in one buffer of bytes."""
    table = (num_rows, MAX_LOGPROBS)
    return (
        view(reports, 0, (num_rows,), np.float32),
        view(reports, num_rows * 4, table, np.int32),
        view(reports, num_rows * 4 * (1 + MAX_LOGPROBS), table, np.float32),
    )


def report(device: Any, logits: DeviceArray, ids: DeviceArray, reports: DeviceArray) -> None:
    """Put the log probabilities of the rows of ``logits`` [R, vocab], of which ``ids`` [R] were drawn, into
    ``reports``."""
    logprobs, top_ids, top_logprobs = split_reports(reports, ids.shape[0])
    device.ops.top_log_probabilities(
        logits, ids, MAX_LOGPROBS, out_logprobs=logprobs, out_top_ids=top_ids, out_top_logprobs=top_logprobs
    )


@dataclass(frozen=True, slots=True, eq=False)
class StepMemory:
    """Where steps are on the device."""

    rows: DecodeRows
    whole: DeviceArray  # bytes: the arrays of a step that is sent whole
    edits: DeviceArray  # bytes
    reports: DeviceArray  # bytes

    @classmethod
    def allocate(cls, device: Any, limits: Limits) -> StepMemory:
        """Take it from ``device.step_buffers``."""
        memory = device.step_buffers
        return cls(
            rows=allocate_rows(memory, limits.max_sequences, limits.max_blocks),
            whole=memory.allocate((limits.whole_step_bytes,), np.uint8),
            edits=memory.allocate((limits.edit_bytes,), np.uint8),
            reports=memory.allocate((limits.report_bytes,), np.uint8),
        )


def lay_out(model: Model, *, block_tokens: int, step_tokens: int, max_sequences: int, max_sequence_tokens: int) -> None:
    """On a device without memory, take and run what a `DeviceRunner` of these limits would: the high-water marks of
    the device's arenas then tell what it needs."""
    limits = Limits(block_tokens, step_tokens, min(max_sequences, step_tokens), max_sequence_tokens)
    memory = StepMemory.allocate(model.device, limits)
    cache = model.allocate_cache(1, block_tokens)
    most = limits.max_sequences
    # Not only the largest: steps of fewer tokens are cut into more parts, whose partial sums need scratch memory too.
    counts = {*make_buckets(most), *tokens_of_shapes(step_tokens), step_tokens}
    for num_tokens, num_sequences in [*((count, min(count, most)) for count in sorted(counts)), (step_tokens, 1)]:
        logits = model.forward(dry_step(num_tokens, num_sequences, num_sequences, limits.max_blocks), cache)
        draws: Draws = memory.rows.draws.first(num_sequences)
        ids = first(memory.rows.drawn, num_sequences)
        draw(model.device, logits, draws, ids)
        report(model.device, logits, ids, memory.reports)
