"""From logits to token ids: penalties and bias, filters, a seeded draw, log probabilities.

Order: what a grammar allows (`mask_logits`). Then logit bias; banned ids; repetition, presence and frequency penalty;
temperature, top-k, top-p, min-p and the draw (`sample`). Log probabilities are those before temperature
(`log_probabilities`, `top_log_probabilities`).

A row's result depends on that row alone. The draw is Gumbel-max: the token with the largest ``logit / T + g`` is a
sample of the softmax when every ``g`` is an independent Gumbel variable (Gumbel 1954; Maddison et al., "A* Sampling",
2014). ``g`` comes from a counter-based generator, so that it is a function of (key, position, token id) and nothing
else: a resumed or preempted request draws the same tokens again. Counter (id // 4, position low, position high, 0),
word id % 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.batch import ANY_ID, GreedyDraw, HostIds, LogitEdits, SamplingParams, decode_only_id
from kernels.logit_edits import MAX_COUNT, EditResets

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt32 = NDArray[np.uint32]
UInt64 = NDArray[np.uint64]

MAX_GUMBEL = 17.4  # of the 24-bit uniform below: -log(-log(1 - 2**-25)) = 17.33
MIN_GUMBEL = -2.9  # -log(-log(2**-25)) = -2.85
CHUNK = 4096  # calls of the generator at a time: its temporaries stay in the cache

_PHILOX_FACTORS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_PHILOX_KEY_STEPS = np.arange(10, dtype=np.uint32)[:, None, None] * np.array([[0x9E3779B9], [0xBB67AE85]], np.uint32)


def reset_edits(edits: LogitEdits[NDArray[Any]], resets: EditResets[NDArray[Any]]) -> None:
    """Begin rows of ``edits`` with what ``resets`` say; whatever they held is forgotten."""
    for reset in resets.resets:
        row = reset["row"]
        counts = resets.counts[reset["first_count"] :][: reset["num_counts"]]
        biases = resets.biases[reset["first_bias"] :][: reset["num_biases"]]
        edits.counts[row] = 0
        edits.counts[row, counts["token_id"]] = counts["word"]
        edits.biases[row, : biases.size] = biases


def edit_logits(logits: Float32, params: SamplingParams[NDArray[Any]]) -> None:
    """Add biases, apply penalties and ban ids in ``logits`` [R, V], where they are; -inf is what cannot be drawn.

    Repetition divides a positive logit and multiplies a negative one (Keskar et al., "CTRL", 2019; as Hugging Face
    and llama.cpp do), if the token is in the prompt or in the output; presence and frequency subtract, by the output
    alone (OpenAI's API).
    """
    for logit_row, row, position in zip(logits, params.rows, params.output_positions, strict=True):
        if row["edit_row"] < 0:
            continue
        assert params.edits is not None, "edits that are nowhere"
        listed = params.edits.biases[row["edit_row"], : row["num_biases"] + row["num_banned"]]
        biases, banned = listed[: row["num_biases"]], listed[row["num_biases"] :]
        logit_row[biases["token_id"]] += biases["bias"]
        if position < row["min_tokens"]:
            logit_row[banned["token_id"]] = -np.inf
        words = params.edits.counts[row["edit_row"], : logit_row.size]
        ids = np.flatnonzero(words)
        values, times = logit_row[ids], (words[ids] & MAX_COUNT).astype(np.int32)
        penalty = row["repetition_penalty"]
        values = np.where(values > 0, values / penalty, values * penalty)
        values -= row["presence_penalty"] * (times > 0) + row["frequency_penalty"] * times
        logit_row[ids] = values


def count(ids: Int32, params: SamplingParams[NDArray[Any]]) -> None:
    """Count the drawn ``ids`` [R] as tokens of the output, up to `MAX_COUNT`."""
    rows = np.flatnonzero((ids >= 0) & (params.rows["edit_row"] >= 0))
    if rows.size:
        assert params.edits is not None, "edits that are nowhere"
        words = params.edits.counts
        places = params.rows["edit_row"][rows], ids[rows]
        words[places] += (words[places] & MAX_COUNT) < MAX_COUNT


def mask_logits(logits: Float32, numbers: Int32, masks: UInt32, *, out: Float32) -> None:
    """Make rows of ``logits`` [R, V] -inf, each but where its mask has a 1; ``out`` may be ``logits``.

    ``numbers`` [R] of rows: that of one of ``masks`` [K, ceil(V / 32)], of which bit i of word w is that of id
    32 * w + i; `ANY_ID`, or `encode_only_id`.
    """
    if out is not logits:
        np.copyto(out, logits)
    vocab_size = logits.shape[1]
    assert numbers.shape == logits.shape[:1] and masks.shape[1] == -(-vocab_size // 32)
    rows = np.flatnonzero(numbers >= 0)
    masks_bytes = np.ascontiguousarray(masks[numbers[rows]], "<u4").view(np.uint8)
    allowed = np.unpackbits(masks_bytes, axis=1, count=vocab_size, bitorder="little").view(np.bool_)
    out[rows] = np.where(allowed, out[rows], -np.inf)
    for row in np.flatnonzero(numbers < ANY_ID):
        out[row] = np.where(np.arange(vocab_size) == decode_only_id(int(numbers[row])), out[row], -np.inf)


def largest_ids(logits: Float32) -> Int64:
    """Ids [R] of the largest of ``logits`` [R, V], of equals the lowest; -1 where `sample` says so."""
    largest = logits.max(axis=1)  # NaN if there is one
    return np.where(np.isfinite(largest), logits.argmax(axis=1), -1)


def draw_greedily(logits: Float32, greedy: GreedyDraw[NDArray[Any]]) -> None:
    """Put `largest_ids` of ``logits`` [R, V] where ``greedy`` says."""
    greedy.ids[:] = largest_ids(logits)
    if greedy.host_ids is not None:
        greedy.host_ids[:] = greedy.ids


def sample(logits: Float32, params: SamplingParams[NDArray[Any]], *, out_ids: Int32, host_ids: HostIds = None) -> None:
    """Draw one token id a row.

    ``logits`` [R, V] float32, -inf for what cannot be drawn, are edited where they are (`edit_logits`), and what is
    drawn counts for the draws after it. Of the R rows of ``params``, ``temperature`` 0 takes the
    largest logit (the lowest id of equals) and looks at no filter. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 are off;
    tokens that tie with the last one kept are kept too. ``key`` is (seed + choice) mod 2**64, ``output_positions`` the
    index of the token within its choice's output. ``out_ids`` [R] int32 is -1 where a row holds NaN or +inf, or nothing
    but -inf: such logits are an error of the model, never a token. ``host_ids`` [R] gets the ids, too.
    """
    edit_logits(logits, params)
    out_ids[:] = largest_ids(logits)
    random = np.flatnonzero((out_ids >= 0) & (params.rows["temperature"] > 0))
    if random.size:
        largest = logits[random, out_ids[random]]
        out_ids[random] = _draw(logits[random], largest, params.rows[random], params.output_positions[random])
    if host_ids is not None:
        host_ids[:] = out_ids
    count(out_ids, params)


def _draw(logits: Float32, largest: Float32, rows: NDArray[np.void], positions: Int64) -> Int64:
    """Ids [R] drawn from ``logits`` [R, V], whose ``largest`` [R] are finite; ``rows`` [R] SAMPLING_ROW."""
    with np.errstate(over="ignore"):  # at a tiny temperature the others are infinitely far below the largest
        scaled = (logits - largest[:, None]) / rows["temperature"][:, None]
    return _gumbel_argmax(scaled, _least_kept(scaled, rows), rows["key"], positions)


def _gumbel_argmax(scaled: Float32, least: Float32, keys: UInt64, positions: Int64) -> Int64:
    """Ids [R] with the largest score among those of ``scaled`` [R, V] that are at least ``least`` [R]."""
    num_rows, vocab_size = scaled.shape
    num_blocks = -(-vocab_size // 4)  # of four ids: the words of one call of the generator
    padded = np.full((num_rows, num_blocks * 4), -np.inf, np.float32)
    padded[:, :vocab_size] = scaled
    # What lies further below the largest than the noise can reach cannot win: exact, and often most of a vocabulary.
    candidates = (padded >= np.maximum(least, MIN_GUMBEL - MAX_GUMBEL)[:, None]).reshape(num_rows, num_blocks, 4)
    rows, blocks = np.nonzero(candidates.any(axis=2))
    scores = np.full((num_rows, num_blocks, 4), -np.inf)
    for start in range(0, rows.size, CHUNK):
        chunk = rows[start : start + CHUNK], blocks[start : start + CHUNK]
        noisy = padded.reshape(scores.shape)[chunk] + _gumbel(chunk[1], keys[chunk[0]], positions[chunk[0]])
        scores[chunk] = np.where(candidates[chunk], noisy, -np.inf)
    ids: Int64 = scores.reshape(num_rows, -1).argmax(axis=1)
    return ids


def _least_kept(scaled: Float32, rows: NDArray[np.void]) -> Float32:
    """The smallest of ``scaled`` [R, V] (logits over temperature, minus the row's largest) that the filters keep.

    ``rows`` [R] SAMPLING_ROW.
    """
    vocab_size = scaled.shape[1]
    top_k, top_p, min_p = rows["top_k"], rows["top_p"], rows["min_p"]
    top_k = np.where((top_k <= 0) | (top_k > vocab_size), vocab_size, top_k)
    with np.errstate(divide="ignore"):
        least = np.log(min_p.astype(np.float64)).astype(np.float32)  # the same on every machine
    ranked = np.flatnonzero((top_k < vocab_size) | (top_p < 1))
    if ranked.size == 0:
        return least
    width = int(top_k[ranked].max())
    descending = scaled[ranked]
    if width < vocab_size:
        descending = np.partition(descending, vocab_size - width, axis=1)[:, vocab_size - width :]
    descending = np.sort(descending, axis=1)[:, ::-1]
    every_row = np.arange(ranked.size)
    last = top_k[ranked] - 1
    weights = np.exp(descending.astype(np.float64))
    weights[np.arange(width) > last[:, None]] = 0
    mass = weights.cumsum(axis=1)
    wanted = top_p[ranked] * mass[:, -1]
    nucleus_last = np.where(top_p[ranked] < 1, (mass < wanted[:, None]).sum(axis=1), last)
    least[ranked] = np.maximum(least[ranked], descending[every_row, np.minimum(last, nucleus_last)])
    return least


def _gumbel(blocks: Int64, keys: UInt64, positions: Int64) -> Float64:
    """Standard Gumbel noise [N, 4] of the token ids ``4 * block + (0, 1, 2, 3)`` at (key, position), all [N]."""
    counters = np.zeros((4, blocks.size), np.uint32)
    counters[0] = blocks
    counters[1] = positions & 0xFFFFFFFF
    counters[2] = positions >> 32
    words = philox4x32(counters, np.stack([keys & np.uint64(0xFFFFFFFF), keys >> np.uint64(32)]).astype(np.uint32))
    uniform = ((words >> 8) + 0.5) * 2.0**-24
    noise: Float64 = -np.log(-np.log(uniform))
    return noise.T


def philox4x32(counters: UInt32, keys: UInt32) -> UInt32:
    """Ten rounds of Philox-4x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

    ``counters`` [4, N] and ``keys`` [2, N] uint32 -> [4, N] uint32.
    """
    even, odd = counters[::2], counters[1::2]
    for key in keys + _PHILOX_KEY_STEPS:
        words = (even * _PHILOX_FACTORS)[::-1].view(np.uint32).reshape(2, -1, 2)  # of each product low word, high word
        even, odd = words[..., 1] ^ odd ^ key, words[..., 0]
    return np.stack([even, odd], axis=1).reshape(4, -1)


def log_probabilities(logits: Float32, *, out: Float32) -> None:
    """Log-softmax of each row: ``logits`` [R, V] -> ``out`` [R, V], natural logarithm; -inf stays -inf."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    np.subtract(shifted, np.log(np.exp(shifted).sum(axis=1, keepdims=True)), out=out)


def top_log_probabilities(
    logits: Float32,
    ids: Int32,
    params: SamplingParams[NDArray[Any]],
    *,
    out_logprobs: Float32,
    out_top_ids: Int32,
    out_top_logprobs: Float32,
) -> None:
    """Log-softmax of ``logits`` [R, V] at ``ids`` [R], and the largest of each row: as many as its ``logprobs`` says.

    Fills ``out_logprobs`` [R], ``out_top_ids`` [R, most] (of equals the lowest id first) and ``out_top_logprobs``
    [R, most]. Where a row wants or the vocabulary has no more, or the row's id is -1, ids are -1 and log probabilities
    -inf.
    """
    out_logprobs[:] = -np.inf
    out_top_logprobs[:] = -np.inf
    out_top_ids[:] = -1
    num_top = np.minimum(params.rows["logprobs"], out_top_ids.shape[1])
    for row in np.flatnonzero((ids >= 0) & (num_top >= 0)):
        shifted = logits[row].astype(np.float64) - logits[row].max()
        values = shifted - np.log(np.exp(shifted).sum())
        top = np.argsort(-logits[row], kind="stable")[: num_top[row]]
        out_logprobs[row] = values[ids[row]]
        out_top_ids[row, : top.size] = top
        out_top_logprobs[row, : top.size] = values[top]
