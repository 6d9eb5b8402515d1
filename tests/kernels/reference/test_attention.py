"""kernels.reference.attention against a plain softmax, over a cache where everything unread is NaN."""

from __future__ import annotations

from copy import copy

import numpy as np
import pytest
from msgspec.structs import replace

import kernels.reference.attention
from kernels.batch import CacheScales, LayerCache, PrefixGroups, Step
from kernels.cache_format import dequantise, quantise
from kernels.reference.attention import paged_attention, plan_attention, rope_attention
from kernels.reference.rope import rope_write, rotation
from kernels.weights.parameters import Attention, RmsNorm, Rope

DIM = 16


class Case:
    """Sequences of given lengths whose last ``new`` tokens are queries; blocks are scattered, the rest is NaN."""

    def __init__(self, lengths: list[int], new: list[int], heads: int, kv_heads: int, block_tokens: int) -> None:
        rng = np.random.default_rng(sum(lengths) + heads)
        self.heads, self.kv_heads, self.lengths, self.new = heads, kv_heads, lengths, new
        max_blocks = max(-(-length // block_tokens) for length in lengths)
        order = rng.permutation(max_blocks * len(lengths) + 2).astype(np.int32)
        self.tables = order[: max_blocks * len(lengths)].reshape(len(lengths), max_blocks)
        shape = (order.size, block_tokens, kv_heads, DIM)
        self.caches = [np.full(shape, np.nan, np.float32) for _ in range(2)]
        self.contents = [[rng.normal(size=(length, kv_heads, DIM)).astype("f4") for length in lengths] for _ in "kv"]
        for cache, contents in zip(self.caches, self.contents, strict=True):
            for table, content in zip(self.tables, contents, strict=True):
                for position, row in enumerate(content):
                    cache[table[position // block_tokens], position % block_tokens] = row
        self.scales: CacheScales | None = None
        self.query_starts = np.concatenate([[0], np.cumsum(new)]).astype(np.int32)
        self.qkv = rng.normal(size=(sum(new), heads * DIM + 5)).astype(np.float32)  # more columns than queries
        self.sinks = rng.normal(size=heads).astype(np.float32)
        self.positions = np.concatenate(
            [np.arange(length - count, length) for length, count in zip(lengths, new, strict=True)]
        ).astype(np.int32)

    def quantised(self) -> Case:
        """The same sequences in 8 bits; what is not read is code -128 with a scale of NaN or of infinity."""
        case = copy(self)
        codes, scales = zip(*map(quantise, self.caches), strict=True)
        unread = [np.isnan(cache[..., 0]) for cache in self.caches]
        for each, places in zip(codes, unread, strict=True):
            each[places] = -128
        for each, places, poison in zip(scales, unread, (np.nan, np.inf), strict=True):
            each[places] = poison
        case.caches, case.scales = list(codes), CacheScales(*scales)
        case.contents = [[dequantise(*quantise(each)) for each in contents] for contents in self.contents]
        return case

    def run(
        self,
        members: list[int],
        window: int,
        sinks: bool,
        softcap: float = 0.0,
        prefixes: PrefixGroups[np.ndarray] | None = None,
    ) -> np.ndarray:
        """The outputs of some of the sequences, one after the other."""
        rows = [np.arange(self.query_starts[member], self.query_starts[member + 1]) for member in members]
        tokens = np.concatenate(rows)
        out = np.full((tokens.size, self.heads * DIM), np.nan, np.float32)
        counts = [row.size for row in rows]
        lengths = np.array([self.lengths[member] for member in members], np.int32)
        step = Step(
            token_ids=np.zeros(tokens.size, np.int32),
            positions=self.positions[tokens],
            slots=np.full(tokens.size, -1, np.int32),
            sequence_rows=np.repeat(np.arange(len(members), dtype=np.int32), counts),
            query_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
            context_lengths=lengths,
            sequence_lengths=lengths,
            block_tables=self.tables[members],
            logit_rows=np.arange(tokens.size, dtype=np.int32),
            prefixes=prefixes,
        )
        attention = Attention(self.heads, self.kv_heads, DIM, 0.25, window, self.sinks if sinks else None)
        attention = replace(attention, softcap=softcap)
        plan = plan_attention(step, attention)
        paged_attention(self.qkv[tokens], LayerCache(*self.caches, self.scales), attention, step, plan, out=out)
        return out

    def expected(self, window: int, sinks: bool, softcap: float = 0.0) -> np.ndarray:
        rows = []
        for sequence, (length, count) in enumerate(zip(self.lengths, self.new, strict=True)):
            keys, values = (contents[sequence].astype(np.float64) for contents in self.contents)
            for position in range(length - count, length):
                query = self.qkv[len(rows), : self.heads * DIM].reshape(self.heads, DIM).astype(np.float64)
                visible = slice(max(0, position - window + 1) if window else 0, position + 1)
                heads = []
                for head in range(self.heads):
                    kv_head = head // (self.heads // self.kv_heads)
                    scores = keys[visible, kv_head] @ query[head] * 0.25
                    scores = softcap * np.tanh(scores / softcap) if softcap else scores
                    weights = np.exp(scores)
                    total = weights.sum() + (np.exp(self.sinks[head]) if sinks else 0)
                    heads.append(weights @ values[visible, kv_head] / total)
                rows.append(np.concatenate(heads))
        return np.array(rows)


CASES = [
    Case([1, 70, 64, 129, 300], [1, 1, 1, 1, 1], 4, 2, 16),
    Case([150, 1, 65, 40], [150, 1, 65, 3], 3, 1, 16),
    Case([90, 90, 90], [1, 20, 1], 2, 2, 7),
]
CASES += [case.quantised() for case in CASES]
NAMES = ["decode", "prefill", "mixed", "decode, q8", "prefill, q8", "mixed, q8"]


def test_scores_have_a_soft_cap() -> None:
    case, everyone = CASES[0], list(range(len(CASES[0].lengths)))
    capped = case.run(everyone, 0, sinks=False, softcap=0.5)
    np.testing.assert_allclose(capped, case.expected(0, sinks=False, softcap=0.5), atol=2e-6)
    assert np.abs(capped - case.run(everyone, 0, sinks=False)).max() > 0.01


@pytest.mark.parametrize("case", CASES, ids=NAMES)
@pytest.mark.parametrize("window", [0, 1, 16, 100])
@pytest.mark.parametrize("sinks", [False, True])
def test_every_token_attends_to_its_own_past_within_the_window(case: Case, window: int, sinks: bool) -> None:
    actual = case.run(list(range(len(case.lengths))), window, sinks)
    np.testing.assert_allclose(actual, case.expected(window, sinks), atol=2e-6)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
@pytest.mark.parametrize("window", [0, 16])
def test_a_sequence_attends_bit_for_bit_the_same_alone_and_among_others(case: Case, window: int) -> None:
    members = list(range(len(case.lengths)))
    together = case.run(members, window, sinks=True)
    alone = np.concatenate([case.run([member], window, sinks=True) for member in members])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
    ("window", "num_read"), [(0, 256 + 14 + 6 + 54 + 1 + 300), (400, 256 + 14 + 6 + 54 + 1 + 300), (150, 4 * 150 + 156)]
)
@pytest.mark.parametrize(("softcap", "in_8_bits"), [(0.0, False), (0.5, False), (0.0, True)])
def test_a_beginning_that_sequences_share_is_read_once_for_all_of_them(
    window: int, num_read: int, softcap: float, in_8_bits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit as each alone; where windows begin at different tiles, each reads its own."""
    case = Case([270, 262, 300, 310, 257], [1, 1, 7, 1, 1], 4, 2, 16)
    case.tables[[1, 3, 4], :16] = case.tables[0, :16]
    case = case.quantised() if in_8_bits else case
    everyone = list(range(5))
    alone = np.concatenate([case.run([each], window, True, softcap) for each in everyone])
    gather, read = kernels.reference.attention._gather, []

    def noting(cache: LayerCache, positions: np.ndarray, needed: np.ndarray, tables: np.ndarray) -> list[LayerCache]:
        read.append(needed.sum())
        return gather(cache, positions, needed, tables)

    monkeypatch.setattr(kernels.reference.attention, "_gather", noting)
    prefixes = PrefixGroups(np.array([[0, 4, 256], [0, 0, 0]], np.int32), np.array([3, 0, 4, 1, 9], np.int32))
    together = case.run(everyone, window, True, softcap, prefixes)
    np.testing.assert_array_equal(together, alone)
    assert sum(read) == num_read


@pytest.mark.parametrize("case", [CASES[1], CASES[4]], ids=["numbers", "q8"])
def test_a_prefilled_token_attends_bit_for_bit_as_a_decoded_one(case: Case) -> None:
    prefill = case.run([0], 0, sinks=True)
    decode = Case([150], [1], 3, 1, 16)
    decode.caches, decode.scales, decode.tables, decode.sinks = case.caches, case.scales, case.tables, case.sinks
    for position in (0, 63, 64, 149):
        decode.positions, decode.lengths = np.array([position], np.int32), [position + 1]
        decode.qkv = case.qkv[position : position + 1]
        np.testing.assert_array_equal(decode.run([0], 0, sinks=True)[0], prefill[position])


@pytest.mark.parametrize("with_scales", [False, True], ids=["numbers", "q8"])
@pytest.mark.parametrize("with_rope", [False, True])
@pytest.mark.parametrize("new", [[1, 1, 1], [4, 1, 20]], ids=["decode", "mixed"])
def test_the_fused_op_is_rotation_and_write_and_then_attention(
    with_rope: bool, new: list[int], with_scales: bool
) -> None:
    rng = np.random.default_rng(0)
    heads, kv_heads, block_tokens, lengths = 4, 2, 16, np.array([40, 9, 33], np.int32)
    rows = np.repeat(np.arange(3), new).astype(np.int32)
    positions = np.concatenate([np.arange(length - count, length) for length, count in zip(lengths, new, strict=True)])
    tables = rng.permutation(9).reshape(3, 3).astype(np.int32)
    step = Step(
        token_ids=np.zeros(rows.size, np.int32),
        positions=positions.astype(np.int32),
        slots=tables[rows, positions // block_tokens] * block_tokens + positions.astype(np.int32) % block_tokens,
        sequence_rows=rows,
        query_starts=np.concatenate([[0], np.cumsum(new)]).astype(np.int32),
        context_lengths=lengths,
        sequence_lengths=lengths,
        block_tables=tables,
        logit_rows=np.arange(rows.size, dtype=np.int32),
    )
    frequencies = rng.uniform(size=(1, DIM // 2)).astype(np.float32)
    by = rotation(step.positions, Rope(frequencies, "neox"), lengths, rows) if with_rope else None
    norm = RmsNorm(rng.normal(size=DIM).astype(np.float32), 1e-5)
    qkv = rng.normal(size=(rows.size, (heads + 2 * kv_heads) * DIM)).astype(np.float32)
    before = rng.normal(size=(2, 9, block_tokens, kv_heads, DIM)).astype(np.float32)
    sinks = rng.normal(size=heads).astype(np.float32)
    attention = Attention(heads, kv_heads, DIM, 0.25, window=20, sinks=sinks, head_norms=(norm, norm))
    plan = plan_attention(step, attention)

    results = []
    for fused in (True, False):
        projected, (keys, values) = qkv.copy(), before.copy()
        out = np.full((rows.size, heads * DIM), np.nan, np.float32)
        cache = LayerCache(keys, values)
        if with_scales:
            (keys, key_scales), (values, value_scales) = quantise(keys), quantise(values)
            cache = LayerCache(keys, values, CacheScales(key_scales, value_scales))
        if fused:
            rope_attention(projected, by, attention, step, plan, out_cache=cache, out=out)
        else:
            rope_write(projected, step.slots, by, attention, out_cache=cache)
            paged_attention(projected, cache, attention, step, plan, out=out)
        results.append((out, *cache.arrays()))
    for actual, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(actual, expected)
    keys_before = quantise(before[0])[0] if with_scales else before[0]
    assert (results[0][1] != keys_before).any(axis=(-1, -2)).sum() == rows.size
