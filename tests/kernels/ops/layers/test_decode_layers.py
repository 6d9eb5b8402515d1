"""kernels.ops.decode_layers: the same bits as of the ops that it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from kernels.batch import CacheScales, LayerCache, Step
from kernels.devices.cuda import CudaDevice
from kernels.ops.attention import cache_shape, rope_attention
from kernels.ops.attention_plan import plan_attention
from kernels.ops.layers.decode_layers import decode_layers, decode_layers_obstacle
from kernels.ops.layers.decode_layers_cut import Head, Layer
from kernels.ops.matmul import linear_residual, norm_head, norm_linear, norm_swiglu
from kernels.ops.rope import rotation
from kernels.runtime.device_array import DeviceArray
from kernels.weights.parameters import Attention, DenseLayer, OutputHead, RmsNorm, Rope
from kernels.weights.weight_store import PackedWeightStore
from tests.kernels.ops.random_weights import random_weight

pytestmark = pytest.mark.gpu

HEADS, KV_HEADS, HEAD_DIM = 14, 2, 64
HIDDEN, INTERMEDIATE = HEADS * HEAD_DIM, 4864
VOCAB = 33_003  # more tiles than blocks have warps, and the last one is not full
BLOCK_TOKENS, MAX_BLOCKS, MAX_SEQUENCES = 16, 160, 8
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


@dataclass
class Case:
    """Layers and a head on the device, and the layers' caches on the host."""

    device: CudaDevice
    layers: list[Layer]
    head: Head
    caches: list[list[np.ndarray]]  # of each layer keys and values; of codes also their scales
    tables: np.ndarray  # [sequences, MAX_BLOCKS]
    rope: Rope[DeviceArray]

    def step(self, positions: tuple[int, ...], logit_rows: tuple[int, ...]) -> Step[DeviceArray]:
        """A token of each sequence; of some position is -1."""
        rows, at = np.arange(len(positions)), np.array(positions)
        tables, lengths = self.tables[: len(positions)], at + 1
        slots = np.where(at < 0, -1, tables[rows, at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS)
        starts = np.arange(len(positions) + 1)
        arrays = (rows, at, slots, rows, starts, lengths, lengths, tables, np.array(logit_rows))
        return Step(*(self.device.upload(self.device.weights, array.astype(np.int32)) for array in arrays))

    def run(
        self, x: np.ndarray, positions: tuple[int, ...], logit_rows: tuple[int, ...], *, at_once: bool
    ) -> list[np.ndarray]:
        """The logits, and the caches after the layers."""
        device, context = self.device, self.device.context
        step, out, num_tokens = self.step(positions, logit_rows), device.upload(device.weights, x), len(positions)
        logits = context.scratch((len(logit_rows), self.head.projection.num_outputs), np.float32)
        arrays = [[device.upload(device.weights, array) for array in cache] for cache in self.caches]
        caches = [LayerCache(*cache[:2], CacheScales(*cache[2:]) if cache[2:] else None) for cache in arrays]
        by = rotation(context, step.positions, self.rope, step.sequence_lengths, step.sequence_rows)
        if at_once:
            decode_layers(context, self.layers, self.head, by, step, out, out_caches=caches, out=logits)
        else:
            qkv, attended, activated = (
                context.scratch((num_tokens, width), np.float16)
                for width in (self.layers[0].attention.qkv_width, HEADS * HEAD_DIM, INTERMEDIATE)
            )
            plan = plan_attention(context, step, self.layers[0].attention)
            for layer, cache in zip(self.layers, caches, strict=True):
                norm_linear(context, out, layer.attention_norm, layer.qkv, out=qkv)
                rope_attention(context, qkv, by, layer.attention, step, plan, out_cache=cache, out=attended)
                linear_residual(context, attended, layer.output, out=out)
                norm_swiglu(context, out, layer.ffn_norm, layer.gate_up, out=activated)
                linear_residual(context, activated, layer.down, out=out)
            norm_head(context, out, step.logit_rows, self.head.norm, self.head.projection, out=logits)
        results = [device.download(array) for array in [logits, *(array for cache in arrays for array in cache)]]
        context.begin_step()
        return results


def make_cache(rng: np.random.Generator, coded: bool) -> list[np.ndarray]:
    shape = cache_shape(NUM_BLOCKS, BLOCK_TOKENS, KV_HEADS, HEAD_DIM)
    if not coded:
        return [rng.normal(size=shape).astype(np.float16) for _ in "kv"]
    codes = [rng.integers(-127, 128, shape).astype(np.int8) for _ in "kv"]
    return [*codes, *(rng.uniform(0.01, 0.03, shape[:-1]).astype(np.float16) for _ in "kv")]


def make_case(
    device: CudaDevice, num_layers: int, rng: np.random.Generator, *, coded: bool = False, head: str = "Q8_0"
) -> Case:
    store = PackedWeightStore(device.context, device.weights)
    output_head = OutputHead(make_norm(store, rng), store.projection([random_weight(head, (VOCAB, HIDDEN), rng)]))
    layers = [make_layer(store, rng, *FORMATS[number % len(FORMATS)]) for number in range(num_layers)]
    assert store.load(lambda _done, _total: None) == []
    caches = [make_cache(rng, coded) for _ in layers]
    tables = rng.permutation(NUM_BLOCKS)[: MAX_SEQUENCES * MAX_BLOCKS].reshape(MAX_SEQUENCES, MAX_BLOCKS)
    frequencies = 1e6 ** -(np.arange(0, HEAD_DIM, 2, dtype=np.float32) / HEAD_DIM)
    rope = Rope(device.upload(device.weights, frequencies[None].astype(np.float32)), "neox")
    return Case(device, layers, output_head, caches, tables, rope)


def assert_equal(
    case: Case, positions: tuple[int, ...], rng: np.random.Generator, logit_rows: tuple[int, ...] | None = None
) -> None:
    x = rng.normal(size=(len(positions), HIDDEN)).astype(np.float32)
    rows = tuple(range(len(positions))) if logit_rows is None else logit_rows
    expected, actual = (case.run(x, positions, rows, at_once=at_once) for at_once in (False, True))
    differ = [
        np.count_nonzero(one.view(np.uint8) != other.view(np.uint8))
        for one, other in zip(expected, actual, strict=True)
    ]
    assert not any(differ), f"positions {positions}: bytes of logits and of the caches that differ: {differ}"


@pytest.mark.sanitize("False-1", but=RACECHECK)
@pytest.mark.parametrize("num_layers", [1, 4])
@pytest.mark.parametrize("coded", [False, True])
def test_all_layers_at_once_are_the_layers_one_by_one(device: CudaDevice, num_layers: int, coded: bool) -> None:
    rng = np.random.default_rng(num_layers)
    case = make_case(device, num_layers, rng, coded=coded)
    assert decode_layers_obstacle(device.context, case.layers, 1) is None
    for position in (0, 15, 63, 64, 200, 255, 256, 511, 512, 768, 1100, 2400, -1):
        assert_equal(case, (position,), rng)


@pytest.mark.sanitize("False-*", but=RACECHECK)
@pytest.mark.parametrize("num_sequences", [2, 4, 8])
@pytest.mark.parametrize("coded", [False, True])
def test_so_are_those_of_a_few_sequences(device: CudaDevice, num_sequences: int, coded: bool) -> None:
    rng = np.random.default_rng(num_sequences)
    case = make_case(device, 4, rng, coded=coded)
    assert decode_layers_obstacle(device.context, case.layers, num_sequences) is None
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
