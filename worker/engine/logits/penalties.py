"""Penalties, biases and banned ids of requests, as arrays that change the logits before a token is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.batch import Adjustments
from worker.engine.sequence import Sequence


def build_adjustments(sequences: list[Sequence]) -> Adjustments[NDArray[Any]]:
    """The sparse edits of each row: an entry for every id that a penalty, a bias or `min_tokens` touches."""
    rows: list[int] = []
    entries: list[tuple[int, float, bool, int, bool]] = []
    for row, sequence in enumerate(sequences):
        before = len(entries)
        entries += _row_adjustments(sequence)
        rows += [row] * (len(entries) - before)
    columns = list(zip(*entries, strict=True)) or [()] * 5
    options = [sequence.sampling for sequence in sequences]
    return Adjustments(
        rows=np.array(rows, np.int32),
        token_ids=np.array(columns[0], np.int32),
        bias=np.array(columns[1], np.float32),
        seen=np.array(columns[2], np.bool_),
        output_counts=np.array(columns[3], np.int32),
        banned=np.array(columns[4], np.bool_),
        repetition_penalty=np.array([option.repetition_penalty for option in options], np.float32),
        presence_penalty=np.array([option.presence_penalty for option in options], np.float32),
        frequency_penalty=np.array([option.frequency_penalty for option in options], np.float32),
    )


def _row_adjustments(sequence: Sequence) -> list[tuple[int, float, bool, int, bool]]:
    """(token id, bias, seen, count in the output, banned) of one row."""
    options = sequence.sampling
    seen: set[int] = set(sequence.token_ids) if options.repetition_penalty != 1 else set()
    counts: dict[int, int] = {}
    if options.presence_penalty or options.frequency_penalty:
        for token_id in sequence.token_ids[sequence.num_prompt :]:
            counts[token_id] = counts.get(token_id, 0) + 1
    banned = set(sequence.banned_ids)
    return [
        (token_id, options.logit_bias.get(token_id, 0.0), token_id in seen, counts.get(token_id, 0), token_id in banned)
        for token_id in sorted(seen | counts.keys() | options.logit_bias.keys() | banned)
    ]
