"""kernels.ops.decode_layers: the same bits as of the ops that it stands for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
from msgspec.structs import replace

from kernels.batch import GREEDY_ROW, SAMPLING_ROW, CacheScales, GreedyDraw, LayerCache, SamplingParams, Step
from kernels.devices.cuda import CudaDevice
from kernels.ops.attention import cache_shape, rope_attention
from kernels.ops.attention_plan import plan_attention
from kernels.ops.embedding import embed
from kernels.ops.layers.decode_layers import decode_layers, decode_layers_support
from kernels.ops.layers.decode_layers_cut import Layer, Model
from kernels.ops.matmul import linear_residual, norm_head, norm_linear, norm_swiglu
from kernels.ops.rope import rotation
from kernels.ops.sampling import sample
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


Way = Literal["one by one", "at once", "draws", "continues"]


@dataclass
class Case:
    """A model on the device, and its layers' caches on the host."""

    device: CudaDevice
    model: Model
    caches: list[list[np.ndarray]]  # of each layer keys and values; of codes also their scales
    tables: np.ndarray  # [sequences, MAX_BLOCKS]

    def step(self, token_ids: np.ndarray, positions: tuple[int, ...], logit_rows: tuple[int, ...]) -> Step[DeviceArray]:
        """A token of each sequence; of some position is -1."""
        rows, at = np.arange(len(positions)), np.array(positions)
        tables, lengths = self.tables[: len(positions)], at + 1
        slots = np.where(at < 0, -1, tables[rows, at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS)
        starts = np.arange(len(positions) + 1)
        arrays = (token_ids, at, slots, rows, starts, lengths, lengths, tables, np.array(logit_rows))
        return Step(*(self.device.upload(self.device.weights, array.astype(np.int32)) for array in arrays))

    def run(
        self, token_ids: np.ndarray, positions: tuple[int, ...], logit_rows: tuple[int, ...], way: Way
    ) -> list[np.ndarray]:
        """The logits, the ids of the largest, and the caches after the layers."""
        device, context, num_tokens = self.device, self.device.context, len(positions)
        step, ids = self.step(token_ids, positions, logit_rows), context.scratch((len(logit_rows),), np.int32)
        logits = context.scratch((len(logit_rows), self.model.head.projection.num_outputs), np.float32)
        arrays = [[device.upload(device.weights, array) for array in cache] for cache in self.caches]
        caches = [LayerCache(*cache[:2], CacheScales(*cache[2:]) if cache[2:] else None) for cache in arrays]
        if way == "one by one":
            self._run_one_by_one(step, caches, logits)
        else:
            if way in ("draws", "continues"):
                step = replace(step, greedy=GreedyDraw(ids, device.pinned((num_tokens,), np.int32)))
            after = self._arrays(step)
            if way == "continues":
                step = self._before(step, np.array(positions) >= 0)
            empty = decode_layers_support(context, self.model).words
            words = device.upload(device.weights, empty)
            decode_layers(context, self.model, step, words=words, out_caches=caches, out=logits)
            assert device.download(words).tobytes() == empty.tobytes()
            if way == "continues":
                after[0] = np.where(np.array(positions) < 0, after[0], np.maximum(after[0], 0))
                assert all(map(np.array_equal, after, self._arrays(step)))
                assert step.greedy is not None and step.greedy.output_positions is not None
                assert device.download(step.greedy.output_positions).tolist() == [7 + (at >= 0) for at in positions]
        if step.greedy is None:
            rows = np.frombuffer(GREEDY_ROW * len(logit_rows), SAMPLING_ROW)
            sent = [device.upload(device.weights, array) for array in (rows, np.zeros(len(logit_rows), np.int64))]
            sample(context, logits, SamplingParams(*sent), out_ids=ids)
        drawn = ids if step.greedy is None else step.greedy.ids
        results = [device.download(array) for array in (logits, drawn, *(array for cache in arrays for array in cache))]
        if step.greedy is not None:
            assert step.greedy.host_ids is not None and (step.greedy.host_ids == results[1]).all()
        context.begin_step()
        return results

    def _arrays(self, step: Step[DeviceArray]) -> list[np.ndarray]:
        """What changes from one step to the next."""
        arrays = step.token_ids, step.positions, step.slots, step.context_lengths, step.sequence_lengths
        return [self.device.download(array) for array in arrays]

    def _before(self, step: Step[DeviceArray], has_sequence: np.ndarray) -> Step[DeviceArray]:
        """The step from which this one, whose ids were drawn, follows."""
        token_ids, positions, slots, contexts, lengths = self._arrays(step)
        other_ids, other_slots = (np.where(has_sequence, 5, array) for array in (token_ids, slots))
        arrays = [other_ids, positions - has_sequence, other_slots, contexts - has_sequence, lengths - has_sequence]
        sent = [self.device.upload(self.device.weights, array.astype(np.int32)) for array in (*arrays, token_ids)]
        output_positions = self.device.upload(self.device.weights, np.full(len(positions), 7, np.int64))
        assert step.greedy is not None
        return replace(
            step,
            token_ids=sent[0],
            positions=sent[1],
            slots=sent[2],
            context_lengths=sent[3],
            sequence_lengths=sent[4],
            greedy=GreedyDraw(sent[5], step.greedy.host_ids, output_positions),
        )

    def _run_one_by_one(
        self, step: Step[DeviceArray], caches: list[LayerCache[DeviceArray]], logits: DeviceArray
    ) -> None:
        context, model, num_tokens = self.device.context, self.model, step.token_ids.size
        by = rotation(context, step.positions, model.rope, step.sequence_lengths, step.sequence_rows)
        x = context.scratch((num_tokens, HIDDEN), np.float32)
        embed(context, step.token_ids, model.embedding.table, scale=model.embedding.scale, out=x)
        qkv, attended, activated = (
            context.scratch((num_tokens, width), np.float16)
            for width in (model.layers[0].attention.qkv_width, HEADS * HEAD_DIM, INTERMEDIATE)
        )
        plan = plan_attention(context, step, model.layers[0].attention)
        for layer, cache in zip(model.layers, caches, strict=True):
            norm_linear(context, x, layer.attention_norm, layer.qkv, out=qkv)
            rope_attention(context, qkv, by, layer.attention, step, plan, out_cache=cache, out=attended)
            linear_residual(context, attended, layer.output, out=x)
            norm_swiglu(context, x, layer.ffn_norm, layer.gate_up, out=activated)
            linear_residual(context, activated, layer.down, out=x)
        norm_head(context, x, step.logit_rows, model.head.norm, model.head.projection, out=logits)


def make_cache(rng: np.random.Generator, coded: bool) -> list[np.ndarray]:
    shape = cache_shape(NUM_BLOCKS, BLOCK_TOKENS, KV_HEADS, HEAD_DIM)
    if not coded:
        return [rng.normal(size=shape).astype(np.float16) for _ in "kv"]
    codes = [rng.integers(-127, 128, shape).astype(np.int8) for _ in "kv"]
    return [*codes, *(rng.uniform(0.01, 0.03, shape[:-1]).astype(np.float16) for _ in "kv")]


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
    caches = [make_cache(rng, coded) for _ in layers]
    tables = rng.permutation(NUM_BLOCKS)[: MAX_SEQUENCES * MAX_BLOCKS].reshape(MAX_SEQUENCES, MAX_BLOCKS)
    frequencies = 1e6 ** -(np.arange(0, HEAD_DIM, 2, dtype=np.float32) / HEAD_DIM)
    rope = Rope(device.upload(device.weights, frequencies[None].astype(np.float32)), "neox", query_growth=growth)
    return Case(device, DenseModel(TokenEmbedding(table, 1.25), rope, layers, output_head), caches, tables)


def assert_equal(
    case: Case, positions: tuple[int, ...], rng: np.random.Generator, logit_rows: tuple[int, ...] | None = None
) -> None:
    token_ids = rng.integers(-1, VOCAB + 1, len(positions))  # what is no row stands for the nearest one
    rows = tuple(range(len(positions))) if logit_rows is None else logit_rows
    ways: list[Way] = ["at once"]
    if decode_layers_support(case.device.context, case.model).words.size and len(rows) == len(positions):
        ways += ["draws"] if 0 in positions else ["draws", "continues"]
    expected = case.run(token_ids, positions, rows, "one by one")
    for way in ways:
        differ = [
            np.count_nonzero(one.view(np.uint8) != other.view(np.uint8))
            for one, other in zip(expected, case.run(token_ids, positions, rows, way), strict=True)
        ]
        assert not any(differ), f"{way}, {positions}: bytes of logits, ids and the caches that differ: {differ}"


@pytest.mark.sanitize("False-1", but=RACECHECK)
@pytest.mark.parametrize("num_layers", [1, 4])
@pytest.mark.parametrize("coded", [False, True])
def test_all_layers_at_once_are_the_layers_one_by_one(device: CudaDevice, num_layers: int, coded: bool) -> None:
    rng = np.random.default_rng(num_layers)
    case = make_case(device, num_layers, rng, coded=coded)
    assert 1 in decode_layers_support(device.context, case.model).num_tokens
    for position in (0, 15, 63, 64, 200, 255, 256, 511, 512, 768, 1100, 2400, -1):
        assert_equal(case, (position,), rng)


@pytest.mark.sanitize("False-*", but=RACECHECK)
@pytest.mark.parametrize("num_sequences", [2, 4, 8])
@pytest.mark.parametrize("coded", [False, True])
def test_so_are_those_of_a_few_sequences(device: CudaDevice, num_sequences: int, coded: bool) -> None:
    rng = np.random.default_rng(num_sequences)
    case = make_case(device, 4, rng, coded=coded)
    assert num_sequences in decode_layers_support(device.context, case.model).num_tokens
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
