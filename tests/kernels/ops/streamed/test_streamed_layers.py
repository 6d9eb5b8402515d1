"""kernels.ops.streamed.streamed_layers: the same bits as of the ops that it stands for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from msgspec.structs import replace

from kernels.devices.cuda import CudaDevice
from kernels.ops.layers.decode_layers import decode_layers_support
from kernels.ops.layers.decode_layers_cut import Layer
from kernels.ops.streamed.streamed_layers import CONTEXT
from kernels.runtime.device_array import DeviceArray
from kernels.weights.parameters import (
    Attention,
    DenseLayer,
    DenseModel,
    OutputHead,
    QueryGrowth,
    RmsNorm,
    Rope,
    TokenEmbedding,
)
from kernels.weights.weight_store import PackedWeightStore
from tests.kernels.ops.layers.layers_case import BLOCK_TOKENS, Case, assert_equal, make_cache
from tests.kernels.ops.random_weights import random_weight

pytestmark = pytest.mark.gpu

HEADS, HEAD_DIM = 32, 96
HIDDEN, INTERMEDIATE = HEADS * HEAD_DIM, 8192
VOCAB = 32_003  # the last tile is not full
MAX_BLOCKS = CONTEXT // BLOCK_TOKENS
FORMATS = (("Q5_K", "Q4_K", "Q4_K", "Q6_K"), ("Q4_K", "Q6_K", "Q5_K", "Q4_K"), ("Q6_K", "Q5_K", "Q6_K", "Q5_K"))
"""Of a layer: Q, K and V, output, gates and ups, down projection."""


def make_norm(store: PackedWeightStore, rng: np.random.Generator) -> RmsNorm[DeviceArray]:
    return RmsNorm(store.vector(rng.normal(1, 0.2, HIDDEN).astype(np.float32)), 1e-5)


def make_layer(
    store: PackedWeightStore, rng: np.random.Generator, qkv: str, output: str, gate: str, down: str
) -> Layer:
    return DenseLayer(
        attention_norm=make_norm(store, rng),
        qkv=store.projection([random_weight(qkv, (3 * HIDDEN, HIDDEN), rng)]),
        attention=Attention(HEADS, HEADS, HEAD_DIM, scale=HEAD_DIM**-0.5, window=CONTEXT),
        output=store.projection([random_weight(output, (HIDDEN, HIDDEN), rng)]),
        ffn_norm=make_norm(store, rng),
        gate_up=store.gate_up([random_weight(gate, (INTERMEDIATE, HIDDEN), rng) for _ in "gu"]),
        down=store.projection([random_weight(down, (HIDDEN, INTERMEDIATE), rng)]),
    )


def make_case(
    device: CudaDevice,
    num_layers: int,
    rng: np.random.Generator,
    *,
    coded: bool = False,
    ends: str = "Q6_K",
    growth: QueryGrowth | None = None,
) -> Case:
    store = PackedWeightStore(device.context, device.weights)
    head = OutputHead(make_norm(store, rng), store.projection([random_weight(ends, (VOCAB, HIDDEN), rng)]))
    table = store.table(random_weight(ends, (VOCAB, HIDDEN), rng))
    layers = [make_layer(store, rng, *FORMATS[number % len(FORMATS)]) for number in range(num_layers)]
    assert store.load(lambda _done, _total: None) == []
    caches = [make_cache(rng, MAX_BLOCKS + 3, layers[0].attention, coded) for _ in layers]
    tables = rng.permutation(MAX_BLOCKS + 3)[None, :MAX_BLOCKS]
    frequencies = 1e4 ** -(np.arange(0, HEAD_DIM, 2, dtype=np.float32) / HEAD_DIM)
    rope = Rope(device.upload(device.weights, frequencies[None].astype(np.float32)), "neox", query_growth=growth)
    return Case(device, DenseModel(TokenEmbedding(table, 1.25), rope, layers, head), caches, tables)


@pytest.mark.sanitize("False")
@pytest.mark.parametrize("coded", [False, True])
def test_all_layers_at_once_are_the_layers_one_by_one(device: CudaDevice, coded: bool) -> None:
    rng = np.random.default_rng(coded)
    case = make_case(device, 3, rng, coded=coded)
    assert list(decode_layers_support(device.context, case.model).contexts) == [1]
    for position in (0, 63, 64, 255, 383, 384, CONTEXT - 1, -1):
        assert_equal(case, (position,), rng)


def test_one_layer_and_logits_that_nobody_wants(device: CudaDevice) -> None:
    rng = np.random.default_rng(2)
    case = make_case(device, 1, rng, ends="Q4_K", growth=QueryGrowth(0.1, 64))
    for position in (3, 64, 300):
        assert_equal(case, (position,), rng)
        assert_equal(case, (position,), rng, ())


def test_of_equal_logits_the_lowest_id_is_drawn_and_none_where_they_are_not_finite(device: CudaDevice) -> None:
    rng = np.random.default_rng(3)
    case = make_case(device, 1, rng, ends="Q5_K")
    for weight in (0.0, np.nan):
        norm = device.upload(device.weights, np.full(HIDDEN, weight, np.float32))
        head = OutputHead(replace(case.model.head.norm, weight=norm), case.model.head.projection)
        same = dataclasses.replace(case, model=replace(case.model, head=head))
        assert_equal(same, (100,), rng)
        _, ids, *_ = same.run(np.zeros(1, np.int64), (100,), (0,), "draws")
        assert ids.tolist() == [0 if weight == 0 else -1]
