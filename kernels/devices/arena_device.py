"""The half of a CUDA device that needs no GPU: its ops, weights and arrays, on arenas with or without memory."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import DTypeLike

from kernels.batch import CacheScales, LayerCache
from kernels.cache_format import FLOAT16, CacheFormat
from kernels.devices.protocol import Allocate, AnyOps
from kernels.ops.attention import cache_shape
from kernels.ops.attention_plan import AttentionPlan
from kernels.ops.layers.delta_net import STATE_DIMS
from kernels.ops.rope import HEAD_DIMS, WIDE_HEAD_DIMS, Rotation
from kernels.ops.sampling import MAX_VOCAB
from kernels.registry import CudaOps, Ops
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import GpuSpec
from kernels.runtime.launcher import Context
from kernels.runtime.memory import Arena
from kernels.weights.half_copy import HalfCopies, IsCopied
from kernels.weights.packed import Experts, PackedMatrix, Projection, Router
from kernels.weights.upload import PinnedBuffers
from kernels.weights.weight_store import PackedWeightStore


class ArenaDevice:
    """The CUDA ops over one arena for each use of memory. Until `use` its context is dry and its arenas are endless."""

    activation_dtype = np.dtype(np.float16)
    head_dims = HEAD_DIMS + WIDE_HEAD_DIMS
    state_dims = STATE_DIMS
    max_vocab: int | None = MAX_VOCAB
    budget_bytes: int | None = None

    def __init__(
        self,
        name: str,
        gpu: GpuSpec,
        description: str,
        cache_format: CacheFormat = FLOAT16,
        is_copied: IsCopied | None = None,
    ) -> None:
        self.name = name
        self.cache_format = cache_format
        self.gpu = gpu
        self.description = description
        self.use(
            Context(gpu),
            weights=Arena(0, None),
            kv_cache=Arena(0, None),
            step_buffers=Arena(0, None),
            copies=HalfCopies(Arena(0, None), is_copied) if is_copied else None,
        )

    def use(
        self,
        context: Context,
        *,
        weights: Arena,
        kv_cache: Arena,
        step_buffers: Arena,
        copies: HalfCopies | None = None,
        buffers: PinnedBuffers | None = None,
    ) -> None:
        """Work with this context and these arenas from now on. Weights are loaded through ``buffers``."""
        self.context = context
        self.weights, self.kv_cache, self.step_buffers = weights, kv_cache, step_buffers
        self.weight_copies = copies.arena if copies else Arena(0, 0)
        ops: Ops[DeviceArray, PackedMatrix, Projection, Router, Experts, Rotation, AttentionPlan] = CudaOps(context)
        self.ops = cast(AnyOps, ops)
        self.store = PackedWeightStore(context, weights, buffers, copies)

    def begin_step(self) -> Allocate[DeviceArray]:
        """Start a forward pass: gives arrays of the scratch memory that live until the next one starts."""
        self.context.begin_step()
        return self.context.scratch

    def layer_cache(
        self, num_blocks: int, block_tokens: int, num_kv_heads: int, head_dim: int
    ) -> LayerCache[DeviceArray]:
        """K and V of a layer in the shape that `cache_shape` tells, with arbitrary contents.

        Scales are that without its last dimension: those of a head's tokens of a block lie together.
        """
        shape, format_ = cache_shape(num_blocks, block_tokens, num_kv_heads, head_dim), self.cache_format
        keys, values = (self.kv_cache.allocate(shape, format_.dtype) for _ in range(2))
        if format_.scale_dtype is None:
            return LayerCache(keys, values)
        key_scales, value_scales = (self.kv_cache.allocate(shape[:-1], format_.scale_dtype) for _ in range(2))
        return LayerCache(keys, values, CacheScales(key_scales, value_scales))

    def state_array(self, *shape: int) -> DeviceArray:
        """States of a recurrent layer, of each slot first: float32 beside the KV cache, with arbitrary contents."""
        return self.kv_cache.allocate(shape, np.float32)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        """An array that stays: a step's inputs and what it draws."""
        return self.step_buffers.allocate(shape, dtype)
