"""A dense model on the device for tests of `decode_layers`, which compare it with the ops that it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from msgspec.structs import replace

from kernels.batch import GREEDY_ROW, SAMPLING_ROW, CacheScales, GreedyDraw, LayerCache, SamplingParams, Step
from kernels.devices.cuda import CudaDevice
from kernels.ops.attention import cache_shape, rope_attention
from kernels.ops.attention_plan import plan_attention
from kernels.ops.embedding import embed
from kernels.ops.layers.decode_layers import decode_layers, decode_layers_support
from kernels.ops.layers.decode_layers_cut import Model
from kernels.ops.matmul import linear_residual, norm_head, norm_linear, norm_swiglu
from kernels.ops.rope import rotation
from kernels.ops.sampling import sample
from kernels.runtime.device_array import DeviceArray
from kernels.weights.parameters import Attention

BLOCK_TOKENS = 16
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


def make_cache(
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
