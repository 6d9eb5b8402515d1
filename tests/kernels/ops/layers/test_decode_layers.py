"""kernels.ops.decode_layers: the same bits as of the ops that it stands for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from msgspec.structs import replace

from kernels.devices.cuda import CudaDevice
from kernels.ops.layers.decode_layers import decode_layers_support
from kernels.ops.layers.decode_layers_cut import Layer
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
from tests.kernels.ops.layers.layers_case import Case, assert_equal, make_cache
from tests.kernels.ops.random_weights import random_weight

pytestmark = pytest.mark.gpu

HEADS, KV_HEADS, HEAD_DIM = 14, 2, 64
HIDDEN, INTERMEDIATE = HEADS * HEAD_DIM, 4864
VOCAB = 33_003  # more tiles than blocks have warps, and the last one is not full
MAX_BLOCKS, MAX_SEQUENCES = 160, 8
NUM_BLOCKS = MAX_SEQUENCES * MAX_BLOCKS + 5
FORMATS = (("Q5_0", "Q5_0", "Q6_K"), ("Q5_0", "Q8_0", "Q4_K"), ("Q5_0", "Q8_0", "Q6_K"), ("Q5_0", "Q5_0", "Q5_0"))
"""Of a layer: most matrices, V, down projection."""

# Not by this tool. Where a block's warps write shared memory that others have read in the phase before, what orders
# them are words in global memory, from all blocks: what is written depends on what was made of that reading. The tool
# knows barriers alone, and of those takes `bar.arrive` for none.
RACECHECK = "racecheck"


def make_norm(store: PackedWeightStore, rng: np.random.Generator) -> RmsNorm[DeviceArray]:
    return RmsNorm(store.vector(rng.normal(1, 0.2, HIDDEN).astype(np.float32)), 1e-6)


def make_layer(store: PackedWeightStore, rng: np.random.Generator, most: str, value: str, down: str) -> Layer:
    shapes = [(HEADS * HEAD_DIM, HIDDEN), (KV_HEADS * HEAD_DIM, HIDDEN), (KV_HEADS * HEAD_DIM, HIDDEN)]
    qkv = [random_weight(name, shape, rng, bias=True) for name, shape in zip((most, most, value), shapes, strict=True)]
    gate_up = [random_weight(most, (INTERMEDIATE, HIDDEN), rng) for _ in "gu"]
    return DenseLayer(
        attention_norm=make_norm(store, rng),
        qkv=store.projection(qkv),
        attention=Attention(HEADS, KV_HEADS, HEAD_DIM, scale=HEAD_DIM**-0.5),
        output=store.projection([random_weight(most, (HIDDEN, HEADS * HEAD_DIM), rng)]),
        ffn_norm=make_norm(store, rng),
        gate_up=store.gate_up(gate_up),
        down=store.projection([random_weight(down, (HIDDEN, INTERMEDIATE), rng)]),
    )


def make_case(
    device: CudaDevice,
    num_layers: int,
    rng: np.random.Generator,
    *,
    coded: bool = False,
    embedding: str = "Q5_0",
    head: str = "Q8_0",
    growth: QueryGrowth | None = None,
) -> Case:
    store = PackedWeightStore(device.context, device.weights)
    output_head = OutputHead(make_norm(store, rng), store.projection([random_weight(head, (VOCAB, HIDDEN), rng)]))
    table = store.table(random_weight(embedding, (VOCAB, HIDDEN), rng))
    layers = [make_layer(store, rng, *FORMATS[number % len(FORMATS)]) for number in range(num_layers)]
    assert store.load(lambda _done, _total: None) == []
    caches = [make_cache(rng, NUM_BLOCKS, layers[0].attention, coded) for _ in layers]
    tables = rng.permutation(NUM_BLOCKS)[: MAX_SEQUENCES * MAX_BLOCKS].reshape(MAX_SEQUENCES, MAX_BLOCKS)
    frequencies = 1e6 ** -(np.arange(0, HEAD_DIM, 2, dtype=np.float32) / HEAD_DIM)
    rope = Rope(device.upload(device.weights, frequencies[None].astype(np.float32)), "neox", query_growth=growth)
    return Case(device, DenseModel(TokenEmbedding(table, 1.25), rope, layers, output_head), caches, tables)


@pytest.mark.sanitize("False-1", but=RACECHECK)
@pytest.mark.parametrize("num_layers", [1, 4])
@pytest.mark.parametrize("coded", [False, True])
def test_all_layers_at_once_are_the_layers_one_by_one(device: CudaDevice, num_layers: int, coded: bool) -> None:
    rng = np.random.default_rng(num_layers)
    case = make_case(device, num_layers, rng, coded=coded)
    assert 1 in decode_layers_support(device.context, case.model).contexts
    for position in (0, 15, 63, 64, 200, 255, 256, 511, 512, 768, 1100, 2400, -1):
        assert_equal(case, (position,), rng)


@pytest.mark.sanitize("False-*", but=RACECHECK)
@pytest.mark.parametrize("num_sequences", [2, 4, 8])
@pytest.mark.parametrize("coded", [False, True])
def test_so_are_those_of_a_few_sequences(device: CudaDevice, num_sequences: int, coded: bool) -> None:
    rng = np.random.default_rng(num_sequences)
    case = make_case(device, 4, rng, coded=coded)
    assert num_sequences in decode_layers_support(device.context, case.model).contexts
    for positions in (
        (0, 2400, -1, 100, 255, 31, 64, 1023),
        (255, 256, 511, 512, 513, 254, 0, 1),
        (-1, 64, 1100, 63, 300, 300, -1, 2047),
        (700, 5, 300, 1500, 2, 800, 17, 128),
        (1500, -1, -1, -1, -1, 40, -1, -1),
        (511, 1100, 0, 257, 1024, 511, 600, 192),
        (63, 63, 63, 63, 63, 63, 63, 63),
    ):
        assert_equal(case, positions[:num_sequences], rng)


def test_logits_are_those_of_the_rows_that_are_asked_for(device: CudaDevice) -> None:
    rng = np.random.default_rng(9)
    case = make_case(device, 1, rng)
    for logit_rows in ((3, 0, 2, 1), (1, 1, 1, 1), (2,), (0, 3)):
        assert_equal(case, (100, 5, 300, -1), rng, logit_rows)


def test_a_head_that_the_kernel_does_not_unpack_comes_after_it(device: CudaDevice) -> None:
    rng = np.random.default_rng(10)
    case = make_case(device, 1, rng, head="Q5_0")
    for positions in ((100,), (100, 5), (100, 5, 300, 7)):
        assert_equal(case, positions, rng)


def test_embeddings_and_queries_may_be_of_other_kinds(device: CudaDevice) -> None:
    rng = np.random.default_rng(11)
    case = make_case(device, 1, rng, embedding="Q8_0", growth=QueryGrowth(0.1, 64))
    for positions in ((100,), (63, 1000), (64, 5, -1, 700), (1, 63, 64, 65, 128, 300, 5, -1)):
        assert_equal(case, positions, rng)


def test_of_equal_logits_the_lowest_id_is_drawn_and_none_where_they_are_not_finite(device: CudaDevice) -> None:
    rng = np.random.default_rng(12)
    case = make_case(device, 1, rng)
    for weight in (0.0, np.nan):
        norm = np.full(HIDDEN, weight, np.float32)
        head = OutputHead(
            replace(case.model.head.norm, weight=device.upload(device.weights, norm)), case.model.head.projection
        )
        same = dataclasses.replace(case, model=replace(case.model, head=head))
        for positions in ((100,), (100, 5), (5, -1, 100, 7), (100, 5, 300, 7, 1, 2, 3, 4)):
            assert_equal(same, positions, rng)
            _, ids, *_ = same.run(np.arange(len(positions)), positions, tuple(range(len(positions))), "draws")
            assert ids.tolist() == [0 if weight == 0 else -1] * len(positions)
