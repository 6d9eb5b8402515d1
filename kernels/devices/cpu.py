"""The CPU device: NumPy on this machine's memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kernels.batch import CacheScales, LayerCache
from kernels.cache_format import FLOAT32, CacheFormat
from kernels.devices.cpu_weight_store import CpuWeightStore
from kernels.devices.protocol import Allocate, AnyOps
from kernels.reference.attention import Pass
from kernels.reference.matmul import Linear, Matrix, TileBudget
from kernels.reference.moe import Experts, Router
from kernels.reference.rope import Rotation
from kernels.registry import Ops, ReferenceOps


class CpuDevice:
    """Runs `kernels.reference`: for tests, demos and machines without a GPU.

    ``dequant_cache_bytes`` bounds the expanded weights that it keeps. The KV cache is of `FLOAT32` or `Q8`.
    """

    name = description = "cpu"
    budget_bytes = None
    head_dims = state_dims = ()
    max_vocab = None
    activation_dtype = np.dtype(np.float32)

    def __init__(self, dequant_cache_bytes: int, cache_format: CacheFormat = FLOAT32) -> None:
        self.cache_format = cache_format
        ops: Ops[NDArray[Any], Matrix, Sequence[Linear], Router, Experts, Rotation, Sequence[Pass]] = ReferenceOps()
        self.ops = cast(AnyOps, ops)
        self.store = CpuWeightStore(TileBudget(dequant_cache_bytes))

    def begin_step(self) -> Allocate[NDArray[Any]]:
        """Start a forward pass: gives arrays of their own."""
        return np.empty

    def layer_cache(
        self, num_blocks: int, block_tokens: int, num_kv_heads: int, head_dim: int
    ) -> LayerCache[NDArray[Any]]:
        """K and V of a layer: [num_blocks, block_tokens, num_kv_heads, head_dim] each, with arbitrary contents.

        Scales are [num_blocks, block_tokens, num_kv_heads].
        """
        shape, scale_dtype = (num_blocks, block_tokens, num_kv_heads), self.cache_format.scale_dtype
        keys, values = (np.empty((*shape, head_dim), self.cache_format.dtype) for _ in range(2))
        scales = CacheScales(np.empty(shape, scale_dtype), np.empty(shape, scale_dtype)) if scale_dtype else None
        return LayerCache(keys, values, scales)

    def state_array(self, *shape: int) -> NDArray[np.float32]:
        """States of a recurrent layer, of each slot first: arbitrary contents."""
        return np.empty(shape, np.float32)

    def memory_bytes(self) -> int:
        """Resident memory of the process; 0 where the system does not tell (no /proc)."""
        try:
            status = Path("/proc/self/status").read_text()
        except OSError:
            return 0
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))

    def verify_residency(self) -> list[str]:
        """Nothing: there is no device memory."""
        return []
