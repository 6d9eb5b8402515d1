"""kernels.reference.rope: rotation of heads and the write to the paged cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from msgspec.structs import replace

from kernels.batch import CacheScales, LayerCache
from kernels.cache_format import quantise
from kernels.reference.rope import rope_write, rotation
from kernels.weights.parameters import Attention, Pairing, QueryGrowth, RmsNorm, Rope

HEADS, KV_HEADS, DIM = 4, 2, 8
FREQUENCIES = np.array([[1.0, 0.1, 0.01, 0.001]], np.float32)


def run(
    qkv: np.ndarray,
    positions: list[int],
    slots: list[int],
    rope: Rope | None,
    sequence_lengths: Sequence[int] = (1000,),
    sequence_rows: Sequence[int] | None = None,
    head_norms: tuple[RmsNorm, RmsNorm] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries [T, HEADS, DIM], and keys and values by slot; all tokens are of one sequence unless told otherwise."""
    keys, values = (np.full((3, 4, KV_HEADS, DIM), np.nan, np.float32) for _ in range(2))
    rows = np.array(sequence_rows or [0] * len(positions), np.int32)
    lengths = np.array(sequence_lengths, np.int32)
    by = None if rope is None else rotation(np.array(positions, np.int32), rope, lengths, rows)
    qkv = qkv.copy()
    attention = Attention(HEADS, KV_HEADS, DIM, scale=1.0, head_norms=head_norms)
    rope_write(qkv, np.array(slots, np.int32), by, attention, out_cache=LayerCache(keys, values))
    return qkv.reshape(len(qkv), -1, DIM)[:, :HEADS], keys.reshape(-1, KV_HEADS, DIM), values.reshape(-1, KV_HEADS, DIM)


def turned(heads: np.ndarray, position: int, pairing: Pairing, frequencies: np.ndarray) -> np.ndarray:
    """Pairs as complex numbers, times exp(i * angle)."""
    num_pairs = frequencies.size
    rotated = heads.astype(np.float64).copy()
    first = slice(0, num_pairs) if pairing == "neox" else slice(0, 2 * num_pairs, 2)
    second = slice(num_pairs, 2 * num_pairs) if pairing == "neox" else slice(1, 2 * num_pairs, 2)
    pairs = (heads[..., first] + 1j * heads[..., second]) * np.exp(1j * position * frequencies)
    rotated[..., first], rotated[..., second] = pairs.real, pairs.imag
    return rotated


@pytest.mark.parametrize("pairing", ["neox", "normal"])
@pytest.mark.parametrize("num_pairs", [4, 3])
def test_heads_turn_by_their_position_and_go_to_their_slots(pairing: Pairing, num_pairs: int) -> None:
    qkv = np.random.default_rng(0).normal(size=(2, (HEADS + 2 * KV_HEADS) * DIM)).astype(np.float32)
    frequencies = FREQUENCIES[:, :num_pairs]
    queries, keys, values = run(qkv, [3, 700], [9, 2], Rope(frequencies, pairing))
    heads = qkv.reshape(2, -1, DIM)
    for row, (position, slot) in enumerate([(3, 9), (700, 2)]):
        expected = turned(heads[row], position, pairing, frequencies[0].astype(np.float64))
        np.testing.assert_allclose(queries[row], expected[:HEADS], atol=1e-4)
        np.testing.assert_allclose(keys[slot], expected[HEADS:-KV_HEADS], atol=1e-4)
        np.testing.assert_array_equal(values[slot], heads[row, -KV_HEADS:])
    untouched = [slot for slot in range(12) if slot not in (9, 2)]
    assert np.isnan(keys[untouched]).all() and np.isnan(values[untouched]).all()


def test_each_token_uses_the_frequencies_for_its_sequences_length_and_the_attention_factor() -> None:
    qkv = np.random.default_rng(1).normal(size=(4, (HEADS + 2 * KV_HEADS) * DIM)).astype(np.float32)
    rope = Rope(np.concatenate([FREQUENCIES, FREQUENCIES / 7]), "neox", attention_factor=1.25, long_after=100)
    lengths, rows = [51, 101, 100], [1, 0, 2, 1]  # of 100 tokens is not yet long, wherever a token stands in them
    queries, _, _ = run(qkv, [50] * 4, [0, 1, 2, 3], rope, lengths, rows)
    heads = qkv.reshape(4, -1, DIM)
    for row, divisor in enumerate([7, 1, 1, 7]):
        expected = turned(heads[row, :HEADS], 50, "neox", FREQUENCIES[0].astype(np.float64) / divisor) * 1.25
        np.testing.assert_allclose(queries[row], expected, atol=1e-4)


def test_without_rope_heads_are_stored_as_they_are() -> None:
    qkv = np.random.default_rng(2).normal(size=(1, (HEADS + 2 * KV_HEADS) * DIM)).astype(np.float32)
    queries, keys, _ = run(qkv, [5], [4], None)
    np.testing.assert_array_equal(np.concatenate([queries[0], keys[4]]), qkv.reshape(-1, DIM)[:-KV_HEADS])


def test_head_norms_come_before_the_rotation() -> None:
    qkv = np.random.default_rng(3).normal(size=(1, (HEADS + 2 * KV_HEADS) * DIM)).astype(np.float32) * 30
    norms = RmsNorm(np.full(DIM, 2, np.float32), 0.0), RmsNorm(np.full(DIM, 3, np.float32), 0.0)
    queries, keys, _ = run(qkv, [11], [0], Rope(FREQUENCIES, "neox"), head_norms=norms)
    np.testing.assert_allclose((queries**2).mean(-1), 4, rtol=1e-5)
    np.testing.assert_allclose((keys[0] ** 2).mean(-1), 9, rtol=1e-5)


def test_values_may_have_a_norm_and_a_layer_may_have_queries_only() -> None:
    qkv = np.random.default_rng(3).normal(size=(2, (HEADS + 2 * KV_HEADS) * DIM)).astype(np.float32)
    norm = RmsNorm(np.ones(DIM, np.float32), 1e-6)
    keys, values = (np.full((3, 4, KV_HEADS, DIM), np.nan, np.float32) for _ in range(2))
    attention = Attention(HEADS, KV_HEADS, DIM, scale=1.0, value_norm=norm)
    slots, positions, one = np.array([9, 2], np.int32), np.array([3, 700], np.int32), np.array([1000], np.int32)
    by = rotation(positions, Rope(FREQUENCIES, "neox"), one, np.zeros(2, np.int32))
    whole = qkv.copy()
    rope_write(whole, slots, by, attention, out_cache=LayerCache(keys, values))
    heads = qkv.reshape(2, -1, DIM)[:, -KV_HEADS:].astype(np.float64)
    expected = heads / np.sqrt((heads**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(values.reshape(-1, KV_HEADS, DIM)[slots], expected, atol=1e-5)

    before = keys.copy(), values.copy()
    queries = qkv[:, : HEADS * DIM].copy()
    rope_write(queries, slots, by, replace(attention, shares_cache=True), out_cache=LayerCache(keys, values))
    np.testing.assert_array_equal(queries, whole[:, : HEADS * DIM])
    np.testing.assert_array_equal(keys, before[0])
    np.testing.assert_array_equal(values, before[1])


def test_in_8_bits_each_head_goes_to_its_slot_quantised_once_it_is_normed_and_rotated() -> None:
    qkv = np.random.default_rng(4).normal(size=(2, (HEADS + 2 * KV_HEADS) * DIM)).astype(np.float32)
    rope, positions = Rope(FREQUENCIES, "neox"), [3, 700]
    _, keys, values = run(qkv, positions, [9, 2], rope)
    by = rotation(np.array(positions, np.int32), rope, np.array([1000], np.int32), np.zeros(2, np.int32))
    codes = [np.full((3, 4, KV_HEADS, DIM), -128, np.int8) for _ in "kv"]
    scales = CacheScales(*(np.full((3, 4, KV_HEADS), np.nan, np.float16) for _ in "kv"))
    attention = Attention(HEADS, KV_HEADS, DIM, scale=1.0)
    slots = np.array([9, 2], np.int32)
    rope_write(qkv.copy(), slots, by, attention, out_cache=LayerCache(*codes, scales))
    for heads, stored, factors in zip((keys, values), codes, scales, strict=True):
        for actual, expected in zip((stored.reshape(12, KV_HEADS, DIM), factors.reshape(12, KV_HEADS)),
                                    quantise(heads[slots]), strict=True):  # fmt: skip
            np.testing.assert_array_equal(actual[slots], expected)
        assert (np.delete(stored.reshape(12, -1), slots, axis=0) == -128).all()
        assert np.isnan(np.delete(factors.reshape(12, -1), slots, axis=0)).all()


def test_queries_grow_with_every_interval_and_keys_do_not() -> None:
    positions = [3, 15, 16, 700]
    qkv = np.random.default_rng(2).normal(size=(4, (HEADS + 2 * KV_HEADS) * DIM)).astype(np.float32)
    growth = QueryGrowth(0.1, 16)
    plain, keys, _ = run(qkv, positions, [9, 2, 0, 1], Rope(FREQUENCIES, "normal"))
    grown, same_keys, _ = run(qkv, positions, [9, 2, 0, 1], Rope(FREQUENCIES, "normal", query_growth=growth))
    factors = 1 + 0.1 * np.log(1 + np.array([0, 0, 1, 43]))
    np.testing.assert_allclose(grown, plain * factors[:, None, None], rtol=1e-6)
    np.testing.assert_array_equal(same_keys, keys)
