"""The half of a CUDA device that needs no GPU: its ops, its weights and its arrays, with or without memory.

Without memory its context is dry and every pointer 0: a model is laid out and run through once, to find out what a
GPU would have to hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from kernels import operations
from kernels.array import Array
from kernels.attention import cache_shape
from kernels.chip import H100, Chip
from kernels.device import Allocate
from kernels.launch import Context
from kernels.memory import Arena
from kernels.rope import HEAD_DIMS
from kernels.weight_store import WeightStore


class PlannedDevice:
    """A CUDA device with no memory yet."""

    activation_dtype = cache_dtype = np.dtype(np.float16)
    head_dims = HEAD_DIMS

    def __init__(self, name: str, chip: Chip = H100) -> None:
        self.name = name
        self.chip = chip
        self.description = f"a planned {chip.arch}"
        self.budget_bytes: int | None = None
        self.use(Context(chip), weights=Arena(0, None), kv_cache=Arena(0, None), step_buffers=Arena(0, None))

    def use(self, context: Context, *, weights: Arena, kv_cache: Arena, step_buffers: Arena) -> None:
        """Work with this context and these arenas from now on."""
        self.context = context
        self.weights, self.kv_cache, self.step_buffers = weights, kv_cache, step_buffers
        self.ops: Any = operations.bind(context)
        self.store = WeightStore(context, weights)

    def begin_step(self) -> Allocate:
        """Start a forward pass: gives arrays of the scratch memory that live until the next one starts."""
        self.context.begin_step()
        return self.context.scratch

    def cache_array(self, num_blocks: int, block_tokens: int, num_kv_heads: int, head_dim: int) -> Array:
        """K or V of a layer."""
        return self.kv_cache.allocate(cache_shape(num_blocks, block_tokens, num_kv_heads, head_dim), self.cache_dtype)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """An array that stays: a step's inputs and what it draws."""
        return self.step_buffers.allocate(shape, dtype)

    def memory_bytes(self) -> int:
        """Bytes laid out so far, scratch included."""
        arenas = (self.weights, self.kv_cache, self.step_buffers)
        return sum(arena.high_water_bytes for arena in arenas) + self.context.high_water_bytes

    def verify_residency(self) -> list[str]:
        return []
