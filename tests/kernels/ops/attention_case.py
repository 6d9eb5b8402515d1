"""Sequences with a cache in scattered blocks, steps over chunks of them, and what attention is to make of those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.batch import SHORT_CHUNK, CacheScales, LayerCache, PrefixGroups, Step
from kernels.cache_format import dequantise, quantise
from kernels.ops.attention import cache_shape, paged_attention, rope_attention
from kernels.ops.attention_plan import plan_attention
from kernels.ops.rope import rope_write, rotation
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context
from kernels.weights.parameters import Attention, RmsNorm, Rope
from tests.kernels.conftest import Download, Upload

Chunk = tuple[int, int, int]  # sequence, its first token in the step, and how many
Group = tuple[list[int], int]  # chunks of a token each whose sequences begin with the same blocks, for so many tokens


@dataclass(frozen=True)
class Heads:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    is_q8: bool = False  # keys and values are codes

    @property
    def group(self) -> int:
        return self.num_heads // self.num_kv_heads

    def __str__(self) -> str:
        return f"{self.num_heads}/{self.num_kv_heads}x{self.head_dim}{'q8' if self.is_q8 else ''}"


class Case:
    """Sequences of given lengths; Q, K and V of all their tokens, normal but for some large ones."""

    def __init__(self, heads: Heads, lengths: list[int], *, block_tokens: int = 16, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, *lengths, heads.num_heads, heads.head_dim])
        self.heads, self.lengths, self.block_tokens = heads, lengths, block_tokens
        width = heads.num_heads + 2 * heads.num_kv_heads
        self.qkv = [rng.normal(size=(length, width, heads.head_dim)).astype(np.float16) for length in lengths]
        for qkv in self.qkv:
            qkv *= rng.choice([1, 4], size=(qkv.shape[0], 1, 1)).astype(np.float16)
            qkv[:, -heads.num_kv_heads :] *= rng.choice([1, 100], p=[0.9, 0.1], size=(qkv.shape[0], 1, 1)).astype("f2")
        self.sinks = rng.normal(size=heads.num_heads).astype(np.float32) * 3
        max_blocks = max(-(-length // block_tokens) for length in lengths) + 1
        order = rng.permutation(max_blocks * len(lengths) + 3).astype(np.int32)
        self.num_blocks = order.size + 1  # one that nobody has
        self.tables = order[: max_blocks * len(lengths)].reshape(len(lengths), max_blocks)

    def share(self, sequences: list[int], num_tokens: int) -> None:
        """From now on these begin with the same blocks."""
        first, *others = sequences
        num_blocks = num_tokens // self.block_tokens
        for other in others:
            self.qkv[other][:num_tokens] = self.qkv[first][:num_tokens]
            self.tables[other, :num_blocks] = self.tables[first, :num_blocks]

    def cache(self, contexts: list[int] | None = None) -> list[NDArray[Any]]:
        """Keys and values of the first tokens of each sequence, NaN elsewhere; of codes also their scales."""
        heads = self.heads
        shape = cache_shape(self.num_blocks, self.block_tokens, heads.num_kv_heads, heads.head_dim)
        caches = [np.full(shape, np.nan, np.float16) for _ in "kv"]
        for table, qkv, context in zip(self.tables, self.qkv, contexts or self.lengths, strict=True):
            positions = np.arange(context)
            blocks, rows = table[positions // self.block_tokens], positions % self.block_tokens
            caches[0][blocks, :, rows] = qkv[:context, heads.num_heads : -heads.num_kv_heads]
            caches[1][blocks, :, rows] = qkv[:context, -heads.num_kv_heads :]
        if not heads.is_q8:
            return list(caches)
        (keys, key_scales), (values, value_scales) = map(coded, caches)
        return [keys, values, key_scales, value_scales]

    def expected(
        self, chunks: list[Chunk], scale: float, window: int, sinks: bool, softcap: float
    ) -> NDArray[np.float64]:
        """[tokens, heads, D] by the formula, in float64."""
        heads, rows = self.heads, []
        for sequence, start, count in chunks:
            if not count:
                continue
            qkv = self.qkv[sequence][: start + count].astype(np.float64)
            queries = qkv[start:, : heads.num_heads].reshape(count, heads.num_kv_heads, heads.group, -1)
            keys, values = qkv[:, heads.num_heads : -heads.num_kv_heads], qkv[:, -heads.num_kv_heads :]
            if heads.is_q8:
                keys, values = (dequantise(*quantise(each.astype(np.float32))) for each in (keys, values))
            scores = np.einsum("thgd,khd->thgk", queries, keys, optimize=True) * scale
            scores = softcap * np.tanh(scores / softcap) if softcap else scores
            distance = np.arange(start, start + count)[:, None] - np.arange(start + count)
            visible = (distance >= 0) & (distance < window if window else True)
            scores = np.where(visible[:, None, None], scores, -np.inf)
            sink = self.sinks.reshape(heads.num_kv_heads, heads.group, 1) if sinks else np.float64(-np.inf)
            largest = np.maximum(scores.max(-1, keepdims=True), sink)
            weights = np.exp(scores - largest)
            weights /= weights.sum(-1, keepdims=True) + np.exp(sink - largest)
            rows.append(np.einsum("thgk,khd->thgd", weights, values, optimize=True).reshape(count, heads.num_heads, -1))
        return np.concatenate(rows)


def coded(heads: NDArray[np.float16]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """``heads`` [..., D] as codes [..., D], in the order of the device's cache, and scales [...]."""
    codes, scales = quantise(heads.astype(np.float32))
    of_16 = (codes ^ np.int8(-128)).reshape(*codes.shape[:-1], -1, 2, 8)
    return np.ascontiguousarray(of_16.swapaxes(-1, -2)).reshape(codes.shape), scales


def layer_cache(caches: Sequence[DeviceArray]) -> LayerCache[DeviceArray]:
    """Of what `Case.cache` gave."""
    return LayerCache(*caches[:2], CacheScales(*caches[2:]) if caches[2:] else None)


class Runner:
    """Steps of a case on the device."""

    def __init__(
        self, context: Context, upload: Upload, download: Download, case: Case, *, softcap: float = 0.0
    ) -> None:
        self.softcap = softcap
        self.context, self.upload, self.download, self.case = context, upload, download, case
        self.caches: list[DeviceArray] = []
        self.has_long_context = False
        self.pads_sequences = True
        """Whether padding is sequences of one token, as in a decode step, or tokens behind all sequences."""
        self.groups: list[Group] = []
        """What is attended to together; then it is to be found by the table of each group's first member alone."""

    def step(self, chunks: list[Chunk], padding: int = 0) -> tuple[Step, NDArray[np.float16]]:
        """The step's arrays and its Q, K and V; ``padding`` tokens more, as in a graph's bucket."""
        case, padded = self.case, [1] * padding if self.pads_sequences else []
        positions = np.concatenate([np.arange(start, start + count) for _, start, count in chunks] + [[-1] * padding])
        positions = positions.astype(np.int32)
        counts = [count for _, _, count in chunks] + padded
        contexts = [start + count for _, start, count in chunks] + [0] * len(padded)
        tables = np.concatenate(
            [case.tables[[chunk[0] for chunk in chunks]], np.zeros((len(padded), case.tables.shape[1]))]
        )
        rows = np.repeat(np.arange(len(counts)), counts)
        rows = np.concatenate([rows, np.zeros(positions.size - rows.size, np.int64)])
        blocks = tables[rows, np.maximum(positions, 0) // case.block_tokens]
        slots = np.where(positions < 0, -1, blocks * case.block_tokens + positions % case.block_tokens)
        starts = np.concatenate([[0], np.cumsum(counts)])
        arrays = (np.zeros(positions.size), positions, slots, rows, starts, contexts, contexts, tables, starts[1:] - 1)
        qkv = np.concatenate([case.qkv[sequence][start : start + count] for sequence, start, count in chunks])
        qkv = np.concatenate([qkv, np.full((padding, *qkv.shape[1:]), np.nan, np.float16)])
        for (_, *others), num_tokens in self.groups:
            tables[others, : num_tokens // case.block_tokens] = case.num_blocks - 1  # NaN
        prefixes = self._prefixes(len(counts)) if self.groups else None
        sent = (self.upload(np.ascontiguousarray(array, np.int32)) for array in arrays)
        has_short_chunks = min(counts) <= SHORT_CHUNK
        other = {"has_short_chunks": has_short_chunks, "has_long_context": self.has_long_context}
        return Step(*sent, prefixes=prefixes, **other), qkv

    def _prefixes(self, num_sequences: int) -> PrefixGroups:
        rows, members = np.zeros((len(self.groups) + 2, 3), np.int32), np.zeros(num_sequences, np.int32)
        end = 0
        for number, (group, num_tokens) in enumerate(self.groups):
            rows[number] = end, len(group), num_tokens
            members[end : end + len(group)] = group
            end += len(group)
        return PrefixGroups(self.upload(rows), self.upload(members))

    def run(
        self,
        chunks: list[Chunk],
        *,
        window: int = 0,
        sinks: bool = False,
        padding: int = 0,
        poison: bool = False,
        layers: int = 1,
    ) -> NDArray[np.float16]:
        """[tokens and padding, heads, D]. ``poison``: what the step must not read of the cache is NaN."""
        case, heads = self.case, self.case.heads
        if poison:
            contexts = [0] * len(case.lengths)
            for sequence, start, count in chunks:
                contexts[sequence] = max(contexts[sequence], start + count)
            caches = [self.upload(cache) for cache in case.cache(contexts)]
        else:
            self.caches = self.caches or [self.upload(cache) for cache in case.cache()]
            caches = self.caches
        step, qkv = self.step(chunks, padding)
        poisoned = np.full((qkv.shape[0], heads.num_heads * heads.head_dim), np.nan, np.float16)
        out, queries = self.upload(poisoned), self.upload(qkv.reshape(qkv.shape[0], -1))
        attention = self._attention(window, sinks)
        self.context.begin_step()
        plan = plan_attention(self.context, step, attention)
        for _ in range(layers):
            paged_attention(self.context, queries, layer_cache(caches), attention, step, plan, out=out)
        return self.download(out).reshape(-1, heads.num_heads, heads.head_dim)

    def _attention(self, window: int, sinks: bool, head_norms: tuple[RmsNorm, RmsNorm] | None = None) -> Attention:
        heads = self.case.heads
        return Attention(
            heads.num_heads,
            heads.num_kv_heads,
            heads.head_dim,
            scale=heads.head_dim**-0.5,
            window=window,
            sinks=self.upload(self.case.sinks) if sinks else None,
            head_norms=head_norms,
            softcap=self.softcap,
        )

    def decode(
        self,
        sequences: list[int],
        rope: Rope | None,
        head_norms: tuple[RmsNorm, RmsNorm] | None,
        *,
        fused: bool,
        window: int = 0,
        sinks: bool = False,
        padding: int = 0,
        layers: int = 1,
    ) -> list[NDArray[Any]]:
        """A step of the last tokens of ``sequences``: attended [tokens and padding, heads, D], and the cache's arrays.

        The cache holds the tokens before; all else in it is NaN. ``fused``: by `rope_attention`, as often as there are
        ``layers``, otherwise by the two ops that it stands for.
        """
        case, heads, context = self.case, self.case.heads, self.context
        caches = [self.upload(cache) for cache in case.cache([length - 1 for length in case.lengths])]
        step, qkv = self.step([(row, case.lengths[row] - 1, 1) for row in sequences], padding)
        poisoned = np.full((qkv.shape[0], heads.num_heads * heads.head_dim), np.nan, np.float16)
        out, projected = self.upload(poisoned), self.upload(qkv.reshape(qkv.shape[0], -1))
        attention = self._attention(window, sinks, head_norms)
        cache = layer_cache(caches)
        context.begin_step()
        by = rotation(context, step.positions, rope, step.sequence_lengths, step.sequence_rows) if rope else None
        plan = plan_attention(context, step, attention)
        if fused:
            for _ in range(layers):
                rope_attention(context, projected, by, attention, step, plan, out_cache=cache, out=out)
        else:
            rope_write(context, projected, step.slots, by, attention, out_cache=cache)
            paged_attention(context, projected, cache, attention, step, plan, out=out)
        return [self.download(out).reshape(-1, heads.num_heads, heads.head_dim), *map(self.download, caches)]
