"""Dense models of random weights for tests of `decode_layers`, which compare it with the ops that it stands for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from msgspec.structs import replace

from kernels.batch import GREEDY_ROW, SAMPLING_ROW, CacheScales, GreedyDraw, LayerCache, SamplingParams, Step
from kernels.devices.cuda import CudaDevice
from kernels.ops.attention import cache_shape, rope_attention
from kernels.ops.attention_plan import plan_attention
from kernels.ops.decode_layers.decode_layers import decode_layers, decode_layers_support
from kernels.ops.decode_layers.decode_layers_cut import Layer, Model
from kernels.ops.decode_layers.streamed_layers import CONTEXT
from kernels.ops.embedding import embed
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

BLOCK_TOKENS = 16
Way = Literal["one by one", "at once", "draws", "continues"]


class LayerFormats(NamedTuple):
    """Tensor types of a layer; ``qkv`` of one matrix, or of queries, keys and values, which have biases then."""

    qkv: tuple[str, ...]
    output: str
    gate_up: str
    down: str


@dataclass(frozen=True)
class ModelShape:
    """What the models of a test have in common; layer after layer has the next of ``formats``, again and again."""

    attention: Attention[DeviceArray]
    intermediate: int
    vocab: int
    epsilon: float
    rope_base: float
    formats: tuple[LayerFormats, ...]
    embedding: str
    head: str
    max_sequences: int
    max_blocks: int  # of a sequence
    query_growth: QueryGrowth | None = None

    @property
    def hidden(self) -> int:
        """The width of the residual stream."""
        return self.attention.query_width

    def model(self, store: PackedWeightStore, rng: np.random.Generator, num_layers: int) -> Model:
        """A model that is not loaded yet."""
        head, table = (random_weight(name, (self.vocab, self.hidden), rng) for name in (self.head, self.embedding))
        output_head = OutputHead(self._norm(store, rng), store.projection([head]))
        layers = [self._layer(store, rng, self.formats[number % len(self.formats)]) for number in range(num_layers)]
        head_dim = self.attention.head_dim
        frequencies = self.rope_base ** -(np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
        rope = Rope(store.vector(frequencies[None]), "neox", query_growth=self.query_growth)
        return DenseModel(TokenEmbedding(store.table(table), 1.25), rope, layers, output_head)

    def _layer(self, store: PackedWeightStore, rng: np.random.Generator, formats: LayerFormats) -> Layer:
        attention = self.attention
        widths = attention.query_width, *[attention.num_kv_heads * attention.head_dim] * 2
        if len(formats.qkv) == 1:
            widths = (attention.qkv_width,)
        qkv = [
            random_weight(name, (width, self.hidden), rng, bias=len(widths) > 1)
            for name, width in zip(formats.qkv, widths, strict=True)
        ]
        gate_up = [random_weight(formats.gate_up, (self.intermediate, self.hidden), rng) for _ in "gu"]
        return DenseLayer(
            attention_norm=self._norm(store, rng),
            qkv=store.projection(qkv),
            attention=attention,
            output=store.projection([random_weight(formats.output, (self.hidden, attention.query_width), rng)]),
            ffn_norm=self._norm(store, rng),
            gate_up=store.gate_up(gate_up),
            down=store.projection([random_weight(formats.down, (self.hidden, self.intermediate), rng)]),
        )

    def _norm(self, store: PackedWeightStore, rng: np.random.Generator) -> RmsNorm[DeviceArray]:
        return RmsNorm(store.vector(rng.normal(1, 0.2, self.hidden).astype(np.float32)), self.epsilon)


QWEN = ModelShape(
    attention=Attention(14, 2, 64, scale=64**-0.5),
    intermediate=4864,
    vocab=33_003,  # more tiles than blocks have warps, and the last one is not full
    epsilon=1e-6,
    rope_base=1e6,
    formats=tuple(
        LayerFormats(("Q5_0", "Q5_0", value), "Q5_0", "Q5_0", down)
        for value, down in (("Q5_0", "Q6_K"), ("Q8_0", "Q4_K"), ("Q8_0", "Q6_K"), ("Q5_0", "Q5_0"))
    ),
    embedding="Q5_0",
    head="Q8_0",
    max_sequences=8,
    max_blocks=160,
)
"""As Qwen2.5-0.5B, whose layers fit into shared memory."""
PHI_3 = ModelShape(
    attention=Attention(32, 32, 96, scale=96**-0.5, window=CONTEXT),
    intermediate=8192,
    vocab=32_003,  # the last tile is not full
    epsilon=1e-5,
    rope_base=1e4,
    formats=(
        LayerFormats(("Q5_K",), "Q4_K", "Q4_K", "Q6_K"),
        LayerFormats(("Q4_K",), "Q6_K", "Q5_K", "Q4_K"),
        LayerFormats(("Q6_K",), "Q5_K", "Q6_K", "Q5_K"),
    ),
    embedding="Q6_K",
    head="Q6_K",
    max_sequences=1,
    max_blocks=CONTEXT // BLOCK_TOKENS,
)
"""As Phi-3-mini, whose layers stream through it."""


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
        attention, width = model.layers[0].attention, model.head.norm.weight.size
        by = rotation(context, step.positions, model.rope, step.sequence_lengths, step.sequence_rows)
        x = context.scratch((num_tokens, width), np.float32)
        embed(context, step.token_ids, model.embedding.table, scale=model.embedding.scale, out=x)
        qkv, attended, activated = (
            context.scratch((num_tokens, width), np.float16)
            for width in (attention.qkv_width, attention.query_width, model.layers[0].down.matrices[0].width)
        )
        plan = plan_attention(context, step, attention)
        for layer, cache in zip(model.layers, caches, strict=True):
            norm_linear(context, x, layer.attention_norm, layer.qkv, out=qkv)
            rope_attention(context, qkv, by, layer.attention, step, plan, out_cache=cache, out=attended)
            linear_residual(context, attended, layer.output, out=x)
            norm_swiglu(context, x, layer.ffn_norm, layer.gate_up, out=activated)
            linear_residual(context, activated, layer.down, out=x)
        norm_head(context, x, step.logit_rows, model.head.norm, model.head.projection, out=logits)


def make_case(
    device: CudaDevice, shape: ModelShape, num_layers: int, rng: np.random.Generator, *, coded: bool = False
) -> Case:
    """A model on the device, with caches of float16 or of codes of 8 bits."""
    store = PackedWeightStore(device.context, device.weights)
    model = shape.model(store, rng, num_layers)
    assert store.load(lambda _done, _total: None) == []
    num_used = shape.max_sequences * shape.max_blocks
    num_blocks = num_used + 5  # some that nobody has
    caches = [_make_cache(rng, num_blocks, shape.attention, coded) for _ in range(num_layers)]
    tables = rng.permutation(num_blocks)[:num_used].reshape(shape.max_sequences, shape.max_blocks)
    return Case(device, model, caches, tables)


def _make_cache(
    rng: np.random.Generator, num_blocks: int, attention: Attention[DeviceArray], coded: bool
) -> list[np.ndarray]:
    shape = cache_shape(num_blocks, BLOCK_TOKENS, attention.num_kv_heads, attention.head_dim)
    if not coded:
        return [rng.normal(size=shape).astype(np.float16) for _ in "kv"]
    codes = [rng.integers(-127, 128, shape).astype(np.int8) for _ in "kv"]
    return [*codes, *(rng.uniform(0.01, 0.03, shape[:-1]).astype(np.float16) for _ in "kv")]


def assert_equal(
    case: Case, positions: tuple[int, ...], rng: np.random.Generator, logit_rows: tuple[int, ...] | None = None
) -> None:
    token_ids = rng.integers(
        -1, case.model.embedding.table.num_rows + 1, len(positions)
    )  # what is no row stands for the nearest one
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


def with_last_norm(case: Case, weight: float) -> Case:
    """The same model, but for the norm before its head, all of whose weights are ``weight``."""
    norm = case.device.upload(case.device.weights, np.full(case.model.head.norm.weight.size, weight, np.float32))
    head = replace(case.model.head, norm=replace(case.model.head.norm, weight=norm))
    return dataclasses.replace(case, model=replace(case.model, head=head))
