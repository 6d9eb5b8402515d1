"""The plan of a CUDA device's memory: made before anything is allocated, by running an engine's largest steps dry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from kernels.batch import Step, first
from kernels.devices.dry_run import DryRunDevice
from kernels.devices.protocol import Device, GpuDevice, is_gpu
from kernels.dry_step import dry_step
from kernels.kernel_variants import common_variants
from kernels.ops.copied.copy_value import copy_value
from kernels.ops.matmul_tuning import tokens_of_shapes
from kernels.runtime.compiler import Variant
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.memory import ALIGNMENT, PAGE_BYTES, MemoryPlan, padded
from kernels.weights.half_copy import IsCopied, half_bytes
from kernels.weights.upload import STAGING_BYTES
from worker.engine.cuda.buffers import StepBuffers, StepLimits
from worker.engine.cuda.decode_graphs import make_buckets, short_contexts
from worker.engine.cuda.logit_processing import report
from worker.engine.cuda.prefix_grouping import prefixes_in
from worker.engine.cuda.whole_step_graphs import MOST_GRAPHS
from worker.model.config import ModelConfig
from worker.model.gguf import GGUFFile
from worker.model.kv_cache import KVCache, bytes_per_block, num_state_slots
from worker.model.registry import Model, assemble_model, read_model_config
from worker.model.weights import Weights
from worker.settings import Settings

GRAPH_BYTES = 512 << 10
"""Device memory of a captured graph."""
GRAPHS_PER_STEP = 2
"""A step is captured as one graph and as two, of which that of the draw is small."""
DECODE_GRAPHS = 2
"""Of each size, for steps with and without prefix groups."""
CUDA_CONTEXT_BYTES = 16 << 20
"""What the driver takes after the budget was decided: the kernels' code and their stacks."""
COPIES_SHARE = 4
"""Copies of weights take up to one part in so many of what a KV cache could use: more sequences save more time."""
LEAST_CACHE_TOKENS = 1024
"""A KV cache that is what the budget leaves must hold so many, or a whole context if that is shorter."""


class EngineMemoryPlan(msgspec.Struct, frozen=True):
    """What an engine needs of a device's memory; ``available_bytes`` is the device's budget, if it has one."""

    memory: MemoryPlan
    num_blocks: int
    block_bytes: int
    block_tokens: int
    num_states: int
    state_bytes: int  # of one state slot; 0: the model has no recurrent layers
    available_bytes: int | None
    variants: tuple[Variant, ...]  # of kernels that will be launched
    copied: frozenset[int]  # numbers of the matrices that get a copy in float16
    model: Model  # that it was planned with, which has no memory

    @property
    def cache_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.num_blocks * self.block_tokens

    @property
    def states_bytes(self) -> int:
        """Of the KV cache's memory, that of states."""
        return self.num_states * self.state_bytes

    @property
    def fits(self) -> bool | None:
        """Whether it can be allocated; None where there is no budget."""
        return None if self.available_bytes is None else self.memory.total_bytes <= self.available_bytes


class _Layout(NamedTuple):
    """A model on a device without memory, after its largest steps ran there."""

    dry: DryRunDevice
    model: Model
    num_graphs: int

    @property
    def without_cache(self) -> MemoryPlan:
        """What it needs beside a KV cache."""
        return replace(_plan(self.dry, num_graphs=self.num_graphs), kv_cache=0)

    @property
    def copies_bytes(self) -> int:
        """Of float16 copies of matrices."""
        return self.dry.weight_copies.high_water_bytes

    @property
    def copied(self) -> frozenset[int]:
        """The numbers of the matrices that have one."""
        matrices = enumerate(self.dry.store.multiplied)
        return frozenset(number for number, matrix in matrices if matrix.half_copy is not None)


def plan_memory(gguf: GGUFFile, device: GpuDevice | DryRunDevice, settings: Settings) -> EngineMemoryPlan:
    """The plan of an engine with ``settings`` on ``device``. Raises `ModelLoadFailed`.

    A KV cache whose size is not set gets what the budget leaves, but no more than the longest sequences that may run at
    once can fill; where there is no budget, the least that would do. Float16 copies of matrices take what a KV cache
    cannot use, and up to `COPIES_SHARE` of what it can.
    """
    config = read_model_config(gguf)
    context_length = min(settings.context_length or config.context_length, config.context_length)
    max_sequences = min(settings.max_sequences, settings.step_tokens)
    lay_out = partial(_lay_out, gguf, device, settings, config, context_length)
    has_budget = device.budget_bytes is not None
    layout = lay_out((lambda _, matrix: copy_value(device.gpu, matrix) > 0) if has_budget else None)
    block_bytes = bytes_per_block(config, device.cache_format, settings.kv_block_tokens)
    state_bytes = layout.model.bytes_per_state
    # Each array starts aligned; two are a state's.
    padding_bytes = (device.cache_format.num_arrays + 2) * config.num_layers * ALIGNMENT
    context_blocks = -(-context_length // settings.kv_block_tokens)
    least = -(-min(context_length, LEAST_CACHE_TOKENS) // settings.kv_block_tokens)
    most = max_sequences * context_blocks
    needed = settings.kv_cache_bytes // block_bytes or context_blocks  # no context must become too long for the cache

    def left_blocks(without_cache: MemoryPlan) -> int:
        left_bytes = ((device.budget_bytes or 0) - without_cache.total_bytes) // PAGE_BYTES * PAGE_BYTES
        left_bytes -= padding_bytes + num_state_slots(state_bytes, settings, most) * state_bytes
        return left_bytes // block_bytes

    if layout.copies_bytes:
        left = left_blocks(replace(layout.without_cache, weight_copies=0))
        room_blocks = left - needed
        if not settings.kv_cache_bytes:
            room_blocks = max(left - most, min(left // COPIES_SHARE, room_blocks))
        room_bytes = max(0, room_blocks * block_bytes // PAGE_BYTES * PAGE_BYTES)
        if layout.copies_bytes > room_bytes:
            chosen = _most_valuable(layout.dry, room_bytes)
            layout = lay_out(lambda number, _: number in chosen)
            # Where matrices have none there, steps need more scratch memory.
            if layout.copied and left_blocks(layout.without_cache) < needed:
                layout = lay_out(None)
    without_cache = layout.without_cache
    if settings.kv_cache_bytes:
        num_blocks = settings.kv_cache_bytes // block_bytes
    else:
        num_blocks = max(least, min(most, left_blocks(without_cache)))
    num_states = num_state_slots(state_bytes, settings, num_blocks)
    cache_bytes = num_blocks * block_bytes + num_states * state_bytes + padding_bytes  # they lie in one allocation
    return EngineMemoryPlan(
        memory=replace(without_cache, kv_cache=cache_bytes),
        num_blocks=num_blocks,
        block_bytes=block_bytes,
        block_tokens=settings.kv_block_tokens,
        num_states=num_states,
        state_bytes=state_bytes,
        available_bytes=device.budget_bytes,
        variants=_variants(layout.dry),
        copied=layout.copied,
        model=layout.model,
    )


def _lay_out(
    gguf: GGUFFile,
    device: GpuDevice | DryRunDevice,
    settings: Settings,
    config: ModelConfig,
    context_length: int,
    is_copied: IsCopied | None,
) -> _Layout:
    dry = DryRunDevice(device.name, device.gpu, device.cache_format, is_copied)
    model = assemble_model(config, Weights(gguf, dry), dry)
    max_sequences = min(settings.max_sequences, settings.step_tokens)
    limits = StepLimits(
        settings.kv_block_tokens,
        settings.step_tokens,
        max_sequences,
        context_length,
        config.vocab_size,
        has_states=model.bytes_per_state > 0,
    )
    _run_largest_steps(model, dry, limits)
    buckets = make_buckets(max_sequences)
    num_long = len(short_contexts(model, buckets))  # of contexts longer than these
    return _Layout(dry, model, GRAPHS_PER_STEP * (DECODE_GRAPHS * len(buckets) + num_long + MOST_GRAPHS))


def _most_valuable(dry: DryRunDevice, room_bytes: int) -> frozenset[int]:
    """The numbers of the matrices whose copies save most time for their bytes, as many as there is room for."""
    matrices = enumerate(dry.store.multiplied)
    copied = [(number, matrix) for number, matrix in matrices if matrix.half_copy is not None]
    copied.sort(key=lambda pair: copy_value(dry.gpu, pair[1]) / half_bytes(pair[1]), reverse=True)
    chosen = set()
    for number, matrix in copied:
        num_bytes = padded(half_bytes(matrix))
        if num_bytes <= room_bytes:
            chosen.add(number)
            room_bytes -= num_bytes
    return frozenset(chosen)


def reserve(gguf: GGUFFile, device: GpuDevice, settings: Settings) -> Settings:
    """Allocate all that an engine with ``settings`` will ever need.

    Returns the settings with the size of the KV cache. Raises `kernels.errors.OutOfDeviceMemory`, `ModelLoadFailed`.
    """
    plan = plan_memory(gguf, device, settings)
    device.allocate(plan.memory, plan.variants, plan.copied)
    return dataclasses.replace(settings, kv_cache_bytes=settings.kv_cache_bytes or plan.num_blocks * plan.block_bytes)


def reserve_for(gguf: GGUFFile, device: Device, run_dry: Callable[[Model], None]) -> None:
    """On a CUDA device, allocate what a model needs for what ``run_dry`` does with it on a device without memory.

    Raises what `reserve` does.
    """
    if is_gpu(device):
        dry = DryRunDevice(device.name, device.gpu, device.cache_format)
        run_dry(assemble_model(read_model_config(gguf), Weights(gguf, dry), dry))
        device.allocate(_plan(dry, num_graphs=0), _variants(dry))


def _run_largest_steps(model: Model, dry: DryRunDevice, limits: StepLimits) -> None:
    """On the model's device, which has no memory, take and run what an engine of these limits would.

    The high-water marks of the device's arenas then tell what it needs.
    """
    buffers = StepBuffers.allocate(dry.step_buffers, limits)
    cache = model.allocate_cache(1, limits.block_tokens)
    most = limits.max_sequences
    # Not only the largest: steps of fewer tokens are cut into more parts, whose partial sums need scratch memory too.
    counts = {*make_buckets(most), *tokens_of_shapes(limits.step_tokens), limits.step_tokens}
    sizes = [(count, min(count, most)) for count in sorted(counts)]
    # Nor only the most logits beside the most tokens: the head's product of fewer may need more, in the same way.
    sizes += [(limits.step_tokens, rows) for rows in sorted({1, *tokens_of_shapes(most)})]
    steps = [dry_step(*size, size[1], limits.max_blocks, has_states=limits.has_states) for size in sizes]
    largest = max(steps, key=lambda step: _run_dry(model, dry, buffers, cache, step))
    # What prefix groups need is the same in all steps, and most where all sequences have one.
    _run_dry(model, dry, buffers, cache, replace(largest, prefixes=prefixes_in(buffers.prefixes)))


def _run_dry(model: Model, dry: DryRunDevice, buffers: StepBuffers, cache: KVCache, step: Step[DeviceArray]) -> int:
    """Run a step; the most scratch memory that this and those before it needed."""
    logits = model.forward(step, cache)
    num_sequences = step.context_lengths.size
    ids = first(buffers.rows.drawn, num_sequences)
    params = buffers.rows.sampling.first(num_sequences)
    dry.ops.sample(logits, params, out_ids=ids)
    report(dry.ops, logits, ids, params, buffers.reports)
    return dry.context.high_water_bytes


def _variants(dry: DryRunDevice) -> tuple[Variant, ...]:
    """What was launched on ``dry``, and what any engine may launch besides."""
    return (*dry.context.variants.values(), *common_variants())


def _plan(dry: DryRunDevice, *, num_graphs: int) -> MemoryPlan:
    """What was laid out on ``dry``, and what the driver needs beside it."""
    return MemoryPlan(
        weights=dry.weights.high_water_bytes,
        weight_copies=dry.weight_copies.high_water_bytes,
        kv_cache=dry.kv_cache.high_water_bytes,
        scratch=max(dry.context.high_water_bytes, STAGING_BYTES),  # first of all, weights are uploaded through it
        step_buffers=dry.step_buffers.high_water_bytes,
        graphs=num_graphs * GRAPH_BYTES,
        cuda_context=CUDA_CONTEXT_BYTES,
    )
