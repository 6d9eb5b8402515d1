"""What the kernels of kernels/cuda/matmul are given: the structs of their parameters."""

from __future__ import annotations

from kernels.ops.norm import NormParams
from kernels.runtime.cuda_struct import CudaStruct, Float32, Int32, Pointer
from kernels.runtime.tma import TensorMap
from kernels.weights.packed import MatrixParams


class OutputParams(CudaStruct, source="matmul/matmul"):
    """Where a product goes, and what becomes of it first."""

    out: Pointer  # [num_out_rows, stride] float16 or float32, as the epilogue says
    stride: Int32
    column: Int32
    epilogue: Int32
    alpha: Float32
    limit: Float32


class RoutingParams(CudaStruct, source="matmul/matmul"):
    """Which experts a token goes through: those with the largest logits."""

    router_logits: Pointer  # [num_tokens, num_experts] float32
    num_experts: Int32
    num_used: Int32
    x_row_of_pair: Int32


class SmallBatchParams(CudaStruct, source="matmul/matmul"):
    """What matmul_gemv* and matmul_small_batch are given."""

    matrix: MatrixParams
    output: OutputParams
    x: Pointer  # [num_x_rows, width] float16; matmul_gemv_normed: float32
    x_rows: Pointer  # [num_tokens] int32: which row of x; null: in order
    norm: NormParams  # matmul_gemv_normed
    routing: RoutingParams  # matmul_gemv_routed
    num_tokens: Int32
    tiles_at_once: Int32  # of a block
    ring_at: Int32  # where in shared memory weights are
    overlaps_previous: Int32


class TiledParams(CudaStruct, source="matmul/matmul"):
    """What matmul_reduce is given, and matmul_tiled_N but for Hopper."""

    matrix: MatrixParams
    output: OutputParams
    x: Pointer  # [num_x_rows, width] float16
    num_tokens: Int32
    partials: Pointer  # [num_partitions, num_tokens, num_rows] float32: partitions computed by several blocks
    tiles: Pointer  # [num_tiles, 4] int32: (expert, first token, number of tokens, -); null: equal ones
    num_tiles: Pointer  # [1] int32


class HopperTiledParams(CudaStruct, source="matmul/matmul_tiled"):
    """What matmul_tiled_N is given on Hopper."""

    tiled: TiledParams
    x_map: TensorMap  # of x, boxes of 64 columns by the tokens of a tile


NO_ROUTING = RoutingParams(router_logits=0, num_experts=0, num_used=0, x_row_of_pair=0)
"""For products in which every token goes through the same matrix."""
