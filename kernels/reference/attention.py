"""Attention over the paged KV cache: grouped heads, sliding window, sinks.

Batch-invariant by construction. Each token is attended for on its own, per KV head and per tile of `TILE_KEYS` keys
that starts at a multiple of `TILE_KEYS` in the sequence: every matrix product has one shape. The softmax takes the
exact maximum over all tiles, then sums tile after tile in order. Keys that a token must not see have weight exactly 0,
so it does not matter how many tiles its neighbours need, nor whether it came in a prefill chunk or as a decode step.
Keys and values that several sequences share are gathered once for all of them; the products stay those of each one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.batch import LayerCache, Step
from kernels.cache_format import dequantise
from kernels.reference.activation import soft_cap
from kernels.reference.rope import Rotation, rope_write
from kernels.weights.parameters import Attention

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

TILE_KEYS = 64
MAX_SCORES = 1 << 22  # elements of the score array at a time (16 MB)


class Pass(NamedTuple):
    """Tokens whose products have one form: of many sequences one each, or some of one sequence, then with its keys."""

    tokens: Int64
    sequences: Int64
    first_key: Int64  # of each sequence
    num_keys: int
    num_shared: int = 0  # keys, from the first on, that are the same for all sequences


def plan_attention(step: Step[Int32], attention: Attention[Float32]) -> Sequence[Pass]:
    """Cut the step into passes, once for all layers of a window."""
    return tuple(_passes(step, attention.window, attention.num_heads))


def paged_attention(
    qkv: Float32,
    cache: LayerCache[NDArray[Any]],
    attention: Attention[Float32],
    step: Step[Int32],
    plan: Sequence[Pass],
    *,
    out: Float32,
) -> None:
    """softmax(q k^T * scale) v for every token over its own sequence's cache, its own position included.

    ``qkv`` [T, >= num_heads * D]: the queries are its first columns. Keys and values of ``cache``, both [blocks,
    block_tokens, kv_heads, D], hold the step's own tokens already; where it has scales, [blocks, block_tokens,
    kv_heads], they are codes, and what is read is their products in float32. ``plan`` is what `plan_attention` made of
    the ``step``. ``out`` [T, heads * D].
    """
    positions, block_tables = step.positions, step.block_tables
    num_heads, window, sinks = attention.num_heads, attention.window, attention.sinks
    num_kv_heads, head_dim = cache.keys.shape[2:]
    num_tokens, group = qkv.shape[0], num_heads // num_kv_heads
    queries = qkv[:, : num_heads * head_dim].reshape(num_tokens, num_kv_heads, group, head_dim)
    grouped_out = out.reshape(num_tokens, num_kv_heads, group, head_dim)
    grouped_sinks = None if sinks is None else sinks.reshape(num_kv_heads, group, 1)
    for tokens, sequences, first_key, num_keys, num_shared in plan:
        key_positions = first_key[:, None] + np.arange(num_keys)
        visible = key_positions <= positions[tokens, None]  # [tokens, num_keys]
        if window:
            visible &= key_positions > positions[tokens, None] - window
        tiles = []
        if num_shared:  # by all, who have the same first key and the same blocks
            shared = np.s_[:1, :num_shared]
            needed = np.logical_or.reduce(visible[:, :num_shared], keepdims=True)
            tiles += _gather(cache, key_positions[shared], needed, block_tables[sequences[:1]])
        own = np.s_[:, num_shared:]
        needed = visible[own] if sequences.size == tokens.size else np.logical_or.reduce(visible[own], keepdims=True)
        tiles += _gather(cache, key_positions[own], needed, block_tables[sequences])
        scores = _scores(queries[tokens], tiles, visible, attention)
        grouped_out[tokens] = _combine(scores, tiles, grouped_sinks)


def rope_attention(
    qkv: Float32,
    by: Rotation | None,
    attention: Attention[Float32],
    step: Step[Int32],
    plan: Sequence[Pass],
    *,
    out_cache: LayerCache[NDArray[Any]],
    out: Float32,
) -> None:
    """`kernels.reference.rope.rope_write` of the step's tokens to ``step.slots``, then `paged_attention`.

    ``qkv`` [T, (num_heads + 2 * kv_heads) * D] comes as it is projected; what it holds afterwards is of no use.
    """
    rope_write(qkv, step.slots, by, attention, out_cache=out_cache)
    paged_attention(qkv, out_cache, attention, step, plan, out=out)


def _passes(step: Step[Int32], window: int, num_heads: int) -> Iterator[Pass]:
    """Cut a step into passes."""
    positions, query_starts = step.positions, step.query_starts
    query_counts = np.diff(query_starts)
    is_alone = query_counts == 1
    for members, num_tokens in _prefixes(step):
        tokens = query_starts[members].astype(np.int64)
        first_key = _first_key(positions[tokens], window)
        num_shared = num_tokens - int(first_key[0])
        if num_shared > 0 and (first_key == first_key[0]).all():
            is_alone[members] = False
            for each in _single_passes(positions, tokens, members, window, num_heads):
                yield each._replace(num_shared=num_shared)
    single = np.flatnonzero(is_alone)
    yield from _single_passes(positions, query_starts[single].astype(np.int64), single, window, num_heads)
    for sequence in np.flatnonzero(query_counts > 1):
        tokens = np.arange(query_starts[sequence], query_starts[sequence + 1], dtype=np.int64)
        for part in _parts(tokens, num_heads * (int(positions[tokens[-1]]) + TILE_KEYS)):
            first_key = _first_key(positions[part[:1]], window)
            num_keys = int(-(-(positions[part[-1]] + 1 - first_key[0]) // TILE_KEYS)) * TILE_KEYS
            yield Pass(part, np.array([sequence]), first_key, num_keys)


def _prefixes(step: Step[Int32]) -> Iterator[tuple[Int64, int]]:
    """The members of each group of sequences, and how many tokens they share."""
    if step.prefixes is not None:
        for first, count, num_tokens in step.prefixes.groups.tolist():
            if count:
                yield step.prefixes.members[first : first + count].astype(np.int64), num_tokens


def _single_passes(positions: Int32, tokens: Int64, sequences: Int64, window: int, num_heads: int) -> Iterator[Pass]:
    """Passes over one token each of some sequences."""
    first_key = _first_key(positions[tokens], window)
    num_tiles = -(-(positions[tokens] + 1 - first_key) // TILE_KEYS)
    size_class = np.ceil(np.log2(np.maximum(num_tiles, 1))).astype(np.int64)  # pads at most to the double
    for class_ in np.unique(size_class):
        members = np.flatnonzero(size_class == class_)
        num_keys = int(num_tiles[members].max()) * TILE_KEYS
        for part in _parts(members, num_heads * num_keys):
            yield Pass(tokens[part], sequences[part], first_key[part], num_keys)


def _first_key(positions: Int32, window: int) -> Int64:
    """Start of the first tile that a token at each of ``positions`` sees."""
    lowest = np.maximum(positions.astype(np.int64) - window + 1, 0) if window else np.zeros(positions.size, np.int64)
    return lowest // TILE_KEYS * TILE_KEYS


def _parts(tokens: Int64, scores_per_token: int) -> Iterator[Int64]:
    size = max(1, MAX_SCORES // scores_per_token)
    for start in range(0, tokens.size, size):
        yield tokens[start : start + size]


def _gather(
    cache: LayerCache[NDArray[Any]], key_positions: Int64, needed: NDArray[np.bool_], block_tables: Int32
) -> list[LayerCache[Float32]]:
    """Tiles of K and V at ``key_positions`` [S, L] of S sequences, each [S, TILE_KEYS, kv_heads, D].

    Zero where not ``needed`` [S, L], because what is there may be anybody's, even NaN, and a weight of 0 times NaN is
    no 0.
    """
    block_tokens = cache.keys.shape[1]
    blocks = np.where(needed, key_positions // block_tokens, 0)
    slots = block_tables[np.arange(block_tables.shape[0])[:, None], blocks].astype(np.int64) * block_tokens
    slots += key_positions % block_tokens
    key_scales, value_scales = cache.scales or (None, None)
    gathered_keys = _read(cache.keys, key_scales, slots, needed)
    gathered_values = _read(cache.values, value_scales, slots, needed)
    return [
        LayerCache(gathered_keys[:, start : start + TILE_KEYS], gathered_values[:, start : start + TILE_KEYS])
        for start in range(0, key_positions.shape[1], TILE_KEYS)
    ]


def _read(cache: NDArray[Any], scales: NDArray[np.float16] | None, slots: Int64, needed: NDArray[np.bool_]) -> Float32:
    """What is in KV ``slots`` [S, L] of the keys or the values of a layer, [S, L, kv_heads, D]; see `_gather`."""
    row = cache.shape[2:]
    heads: NDArray[Any] = cache.reshape(-1, *row).take(slots, axis=0)
    if scales is not None:
        factors = scales.reshape(-1, row[0]).take(slots, axis=0)
        factors[~needed] = 0
        return dequantise(heads, factors)
    heads[~needed] = 0
    return heads


def _scores(
    queries: Float32, tiles: list[LayerCache[Float32]], visible: NDArray[np.bool_], attention: Attention[Float32]
) -> Float32:
    """Scores [n, kv_heads, group, L] of ``queries`` [n, kv_heads, group, D]; -inf where not ``visible``."""
    scores = np.empty((*queries.shape[:3], visible.shape[1]), np.float32)
    for number, tile in enumerate(tiles):
        keys = tile.keys.transpose(0, 2, 3, 1)  # [S, kv_heads, D, TILE_KEYS]
        out = scores[..., number * TILE_KEYS : (number + 1) * TILE_KEYS]
        np.multiply(np.matmul(queries, keys), np.float32(attention.scale), out=out)
    if attention.softcap:
        soft_cap(scores, attention.softcap)
    np.copyto(scores, -np.inf, where=~visible[:, None, None])
    return scores


def _combine(scores: Float32, tiles: list[LayerCache[Float32]], sinks: Float32 | None) -> Float32:
    """Softmax of ``scores`` [n, kv_heads, group, L] applied to the values of ``tiles``: [n, kv_heads, group, D]."""
    largest = scores.max(axis=-1, keepdims=True)
    if sinks is not None:
        largest = np.maximum(largest, sinks)
    weights = np.exp(scores - largest)
    total = np.zeros(largest.shape, np.float32) if sinks is None else np.exp(sinks - largest)
    attended = np.zeros((*scores.shape[:3], tiles[0].values.shape[-1]), np.float32)
    for number, tile in enumerate(tiles):
        of_tile = np.ascontiguousarray(weights[..., number * TILE_KEYS : (number + 1) * TILE_KEYS])
        total += of_tile.sum(axis=-1, keepdims=True)
        attended += np.matmul(of_tile, tile.values.transpose(0, 2, 1, 3))
    attended /= total
    return attended
