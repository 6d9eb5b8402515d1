"""Log probabilities as an engine reports them: records of bytes, which `worker.contract.TokenOutput` describes."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from worker.contract import logprob_record_bytes

_INT32, _FLOAT32 = np.dtype("<i4"), np.dtype("<f4")


def logprob_records(
    logprobs: NDArray[np.float32], top_ids: NDArray[np.int32], top_logprobs: NDArray[np.float32]
) -> list[bytes]:
    """A record for each of R rows: ``logprobs`` [R] of their tokens, ``top_ids`` and ``top_logprobs`` [R, num_top].

    The alternatives that cannot be drawn come last, and their log probabilities are not finite.
    """
    num_rows, num_top = top_ids.shape
    table = np.empty((num_rows, 1 + 2 * num_top), _INT32)
    numbers = table.view(_FLOAT32)
    numbers[:, 0] = logprobs
    table[:, 1 : 1 + num_top] = np.where(np.isfinite(top_logprobs), top_ids, -1)
    numbers[:, 1 + num_top :] = top_logprobs
    records, size = table.tobytes(), logprob_record_bytes(num_top)
    return [records[start : start + size] for start in range(0, len(records), size)]


def certain_record(token_id: int, num_top: int) -> bytes:
    """The record of a token that was the only one possible."""
    ids, logprobs = [-1] * num_top, [-np.inf] * num_top
    ids[:1], logprobs[:1] = [token_id][:num_top], [0.0][:num_top]
    return struct.pack(f"<f{num_top}i{num_top}f", 0.0, *ids, *logprobs)


def are_finite(records: bytes, num_top: int) -> bool:
    """Whether the tokens' own log probabilities are numbers: if not, their logits were none."""
    own = np.frombuffer(records, _FLOAT32)[:: 1 + 2 * num_top]
    return bool(np.isfinite(own).all())
