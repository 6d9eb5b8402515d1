"""What a float16 copy of a matrix is worth, by the estimates that kernels are chosen by."""

from __future__ import annotations

from kernels.ops.copied.copied_matmul import MOST_TOKENS, copied_shape
from kernels.ops.matmul_tuning import tile_shape
from kernels.ops.sliced_k.sliced_k_matmul import sliced_k_shape
from kernels.ops.stream_k.stream_k_matmul import MAX_TOKENS, stream_k_shape
from kernels.ops.unpacked.unpacked_matmul import MOST_BYTES, unpacked_shape
from kernels.runtime.gpu_spec import GpuSpec
from kernels.weights.half_copy import can_unpack, half_bytes
from kernels.weights.packed import PackedMatrix

OVER_ESTIMATE_US = 0.7
"""Products on packed weights take so much more: see `_START_US` of stream-K and sliced-K. Of copies that is counted."""
_VALUED_TOKENS = (256, 8192)  # that answers of many sequences have, and prompts


def copy_value(gpu: GpuSpec, matrix: PackedMatrix) -> float:
    """Microseconds that products take less, about, if ``matrix`` has a float16 copy; 0: it is to have none."""
    if not can_unpack(gpu, matrix) or half_bytes(matrix) > MOST_BYTES:
        return 0.0
    return sum(max(0.0, _packed_us(gpu, matrix, count) - _copied_us(gpu, matrix, count)) for count in _VALUED_TOKENS)


def _packed_us(gpu: GpuSpec, matrix: PackedMatrix, num_tokens: int) -> float:
    num_rows, num_chunks, num_partitions = matrix.num_rows, matrix.num_chunks, matrix.num_partitions
    estimates = [
        tile_shape(gpu, num_rows, num_chunks, num_partitions, num_tokens).estimated_us,
        unpacked_shape(gpu, matrix, num_tokens, copied=False).estimated_us,
    ]
    if num_tokens <= MAX_TOKENS:
        estimates.append(stream_k_shape(gpu, matrix, num_tokens).estimated_us)
    if matrix.num_partitions > 1 and not matrix.gated:
        estimates.append(sliced_k_shape(gpu, matrix, num_tokens).estimated_us)
    return min(estimates) + OVER_ESTIMATE_US


def _copied_us(gpu: GpuSpec, matrix: PackedMatrix, num_tokens: int) -> float:
    us = unpacked_shape(gpu, matrix, num_tokens, copied=True).estimated_us
    return us if num_tokens > MOST_TOKENS else min(us, copied_shape(gpu, matrix, num_tokens).estimated_us)
