"""kernels.reference.decode_layers against the formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from kernels.batch import GreedyDraw, LayerCache, Step
from kernels.devices.open import open_device
from kernels.reference.decode_layers import decode_layers, decode_layers_support
from kernels.weights.parameters import (
    Attention,
    DenseLayer,
    DenseModel,
    OutputHead,
    RmsNorm,
    Rope,
    TokenEmbedding,
    Weight,
)
from tests.kernels.ops.random_weights import random_weight, values_of

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INTERMEDIATE, VOCAB = 4, 2, 16, 96, 128, 50
TOKEN, POSITION, BLOCK_TOKENS = 3, 5, 4
EPSILON = 1e-6
Float64 = NDArray[np.float64]


class Case:
    """Two layers and a head, and what a sequence of `POSITION` tokens has in their caches, in blocks 2 and 0."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.layers = []
        self.weights: list[list[Weight]] = []
        self.norms = rng.normal(1, 0.2, (2, 2, HIDDEN)).astype(np.float32)
        store = open_device("cpu").store
        query_width, kv_width = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
        widths = query_width, kv_width, kv_width
        for norms in self.norms:
            weights = [
                *(random_weight("Q8_0", (width, HIDDEN), rng, bias=True) for width in widths),
                random_weight("Q8_0", (HIDDEN, query_width), rng),
                *(random_weight("Q8_0", (INTERMEDIATE, HIDDEN), rng) for _ in "gu"),
                random_weight("Q8_0", (HIDDEN, INTERMEDIATE), rng),
            ]
            self.weights.append(weights)
            self.layers.append(
                DenseLayer(  # type: ignore[arg-type]
                    attention_norm=RmsNorm(norms[0], EPSILON),
                    qkv=store.projection(weights[:3]),
                    attention=Attention(HEADS, KV_HEADS, HEAD_DIM, scale=HEAD_DIM**-0.5),
                    output=store.projection(weights[3:4]),
                    ffn_norm=RmsNorm(norms[1], EPSILON),
                    gate_up=store.gate_up(weights[4:6]),
                    down=store.projection(weights[6:]),
                )
            )
        self.norm = rng.normal(1, 0.2, HIDDEN).astype(np.float32)
        self.head_weight = random_weight("Q8_0", (VOCAB, HIDDEN), rng)
        self.head = store.projection([self.head_weight])
        self.embedding_weight = random_weight("Q8_0", (VOCAB, HIDDEN), rng)
        self.embedding = TokenEmbedding(store.table(self.embedding_weight), 0.5)
        self.frequencies = (100.0 ** -(np.arange(HEAD_DIM // 2) / 8)).astype(np.float32)
        rope = Rope(self.frequencies[None], "neox")
        head = OutputHead(RmsNorm(self.norm, EPSILON), self.head)
        self.model = DenseModel(self.embedding, rope, self.layers, head)
        self.known = rng.normal(size=(2, 2, POSITION, KV_HEADS, HEAD_DIM)).astype(np.float32)

    def caches(self) -> list[LayerCache[NDArray[np.float32]]]:
        caches = []
        for known in self.known:
            pair = [np.full((3, BLOCK_TOKENS, KV_HEADS, HEAD_DIM), np.nan, np.float32) for _ in "kv"]
            for array, rows in zip(pair, known, strict=True):
                array[2], array[0, : POSITION - BLOCK_TOKENS] = rows[:BLOCK_TOKENS], rows[BLOCK_TOKENS:]
            caches.append(LayerCache(*pair))
        return caches

    def expected(self) -> Float64:
        x = values_of(self.embedding_weight)[TOKEN] * self.embedding.scale
        for layer, norms, (keys, values) in zip(self.weights, self.norms, self.known.astype(np.float64), strict=True):
            q, k, v, output, gate, up, down = map(values_of, layer)
            biases = [weight.bias for weight in layer[:3]]
            n = normed(x, norms[0])
            query, key, value = (
                (matrix @ n + bias).reshape(-1, HEAD_DIM) for matrix, bias in zip((q, k, v), biases, strict=True)
            )
            keys = np.concatenate([keys, self.rotated(key)[None]])
            values = np.concatenate([values, value[None]])
            query = self.rotated(query).reshape(KV_HEADS, HEADS // KV_HEADS, HEAD_DIM)
            weights = np.exp(np.einsum("kgd,tkd->kgt", query, keys) * HEAD_DIM**-0.5)
            weights /= weights.sum(-1, keepdims=True)
            x = x + output @ np.einsum("kgt,tkd->kgd", weights, values).reshape(-1)
            n = normed(x, norms[1])
            gates = gate @ n
            x = x + down @ (gates / (1 + np.exp(-gates)) * (up @ n))
        return values_of(self.head_weight) @ normed(x, self.norm)

    def rotated(self, heads: Float64) -> Float64:
        angles = POSITION * self.frequencies.astype(np.float64)
        first, second = np.split(heads, 2, axis=-1)
        cosine, sine = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def normed(x: Float64, weight: NDArray[np.float32]) -> Float64:
    return x / np.sqrt(np.mean(x * x) + EPSILON) * weight


@pytest.mark.parametrize("copies", [1, 2])
def test_logits_of_a_token_are_the_formulas(copies: int) -> None:
    case = Case()
    slot = POSITION - BLOCK_TOKENS  # of block 0; what sequences of the same blocks write is the same
    rows = list(range(copies))
    lists = [
        [TOKEN] * copies,
        [POSITION] * copies,
        [slot] * copies,
        rows,
        [*rows, copies],
        *[[POSITION + 1] * copies] * 2,
    ]
    step = Step(*(np.array(values, np.int32) for values in (*lists, [[2, 0]] * copies, rows)))
    ids, host_ids = np.empty((2, copies), np.int32)
    step, out = replace(step, greedy=GreedyDraw(ids, host_ids)), np.empty((copies, VOCAB), np.float32)
    decode_layers(case.model, step, words=np.empty(0, np.float32), out_caches=case.caches(), out=out)
    expected = case.expected()
    for row in out:
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)
    assert ids.tolist() == host_ids.tolist() == [expected.argmax()] * copies


def test_numpy_gains_nothing_by_it() -> None:
    case = Case()
    assert decode_layers_support(case.model).obstacle == "it is no faster on the CPU"
