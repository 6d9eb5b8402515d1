"""Products on packed weights: what one is, kinds of epilogue, and the structs that kernels/cuda/matmul are given."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from kernels.ops.norm import DeviceNorm, NormParams
from kernels.runtime.cuda_constants import declare_constants, declare_enum
from kernels.runtime.cuda_struct import CudaStruct, Float32, Int32, Pointer
from kernels.runtime.device_array import DeviceArray, pointer_of
from kernels.runtime.tma import TensorMap, tensor_map
from kernels.weights.formats import CHUNK
from kernels.weights.packed import MatrixParams, PackedMatrix


class Epilogue(IntEnum):
    """What becomes of the sums; in CUDA `EpilogueKind`."""

    STORE_HALF = 0
    STORE_FLOAT = 1
    ADD_RESIDUAL = 2
    SWIGLU = 3
    CLAMPED_SWIGLU = 4
    GELU = 5
    GEGLU = 6
    SOFTCAP = 7

    @property
    def is_gated(self) -> bool:
        """Whether it takes gates and up projections."""
        return self in (Epilogue.SWIGLU, Epilogue.CLAMPED_SWIGLU, Epilogue.GEGLU)


OVERLAPS_PREVIOUS, PICKS_ROWS, HAS_WAITING_WARP = 1, 2, 4  # flags of `SmallBatchParams`
declare_constants(
    "matmul/matmul_weights.cuh",
    OVERLAPS_PREVIOUS=OVERLAPS_PREVIOUS,
    PICKS_ROWS=PICKS_ROWS,
    HAS_WAITING_WARP=HAS_WAITING_WARP,
)
declare_enum("matmul/matmul_epilogue.cuh", "EpilogueKind", [*(kind.name for kind in Epilogue), "NUM_EPILOGUES"])


class Product(NamedTuple):
    """Columns of ``out`` [T, ...] from ``column`` on: the ``epilogue`` of ``x`` times ``matrix``.

    ``x`` [T, K] is float16; with a ``norm`` it is float32 and normed first, with ``x_rows`` [T] those of its rows. In a
    mixture of experts a row of ``x`` may stand for several of ``out``. ``overlaps_previous``: the product neither reads
    what the kernel launched before it writes, nor writes what that one touches; ``is_overlapped``: it does not, but the
    next product does. ``alpha`` and ``limit`` are those of the clamped SwiGLU; else ``alpha`` is the cap of SOFTCAP, or
    the factor of GEGLU and of what is float32.
    """

    x: DeviceArray
    matrix: PackedMatrix
    out: DeviceArray
    epilogue: Epilogue
    column: int = 0
    norm: DeviceNorm | None = None
    x_rows: DeviceArray | None = None
    overlaps_previous: bool = False
    is_overlapped: bool = False
    alpha: float = 1.0
    limit: float = 0.0

    def flags(self, *, waits: bool) -> int:
        """Those of `SmallBatchParams`; ``waits``: HAS_WAITING_WARP."""
        picks_rows = self.x_rows is not None
        return OVERLAPS_PREVIOUS * self.overlaps_previous | PICKS_ROWS * picks_rows | HAS_WAITING_WARP * waits

    def can_store(self, num_bytes: int) -> bool:
        """Whether so many bytes of a row's outputs can be stored at once: what is beside them begins at multiples."""
        count = num_bytes // self.out.dtype.itemsize
        return not any(number % count for number in (self.matrix.num_rows, self.column, self.out.shape[1]))


class ExpertTiles(NamedTuple):
    """Tiles of ``size`` rows of one expert each, built on the device."""

    entries: DeviceArray  # [max_tiles, 4] int32
    num_tiles: DeviceArray  # [1] int32
    size: int


class RoutedShared(NamedTuple):
    """An expert that every token goes through, of the shape of the others: a token has it after those chosen."""

    gate_up: PackedMatrix
    down: PackedMatrix
    output_gate: DeviceArray  # [H] float32
    shares: DeviceArray  # [T] float32: what it is multiplied by


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
    experts: Pointer  # [num_tokens, num_used] int32 by rank; written by the first product
    shared_packed: Pointer  # of an expert after those chosen, which every token goes through; null: there is none
    shares: Pointer  # [num_tokens] float32: what that one is multiplied by
    num_experts: Int32
    num_used: Int32
    x_row_of_pair: Int32
    is_first: Int32


class SmallBatchParams(CudaStruct, source="matmul/matmul"):
    """What matmul_gemv* and matmul_small_batch are given."""

    x: Pointer  # [num_x_rows, width] float16; matmul_gemv_normed: float32
    tiles_at_once: Int32  # of a block
    flags: Int32
    matrix: MatrixParams
    x_rows: Pointer  # [num_tokens] int32: which row of x, if it `PICKS_ROWS`; else null: in order
    output: OutputParams
    norm: NormParams  # matmul_gemv_normed
    ring_at: Int32  # where in shared memory weights are
    num_tokens: Int32
    routing: RoutingParams  # matmul_gemv_routed


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


def output_params(product: Product) -> OutputParams:
    """Where ``product`` goes."""
    x, matrix, out, epilogue, column, *_ = product
    assert matrix.gated == epilogue.is_gated
    assert x.shape[-1] == matrix.width, f"a matrix of {matrix.width} inputs on {x.shape[-1]} columns"
    return OutputParams(
        out=out.pointer,
        stride=out.shape[1],
        column=column,
        epilogue=epilogue,
        alpha=product.alpha,
        limit=product.limit,
    )


def tiled_params(
    product: Product, tiles: ExpertTiles | None = None, partials: DeviceArray | None = None
) -> TiledParams:
    """What kernels that multiply in tiles are given."""
    return TiledParams(
        matrix=product.matrix.params,
        output=output_params(product),
        x=product.x.pointer,
        num_tokens=product.out.shape[0],
        partials=pointer_of(partials),
        tiles=tiles.entries.pointer if tiles else 0,
        num_tiles=tiles.num_tiles.pointer if tiles else 0,
    )


def hopper_params(params: TiledParams, x: DeviceArray, size: int) -> HopperTiledParams:
    """The same on Hopper, with tiles of ``size`` tokens."""
    return HopperTiledParams(tiled=params, x_map=tensor_map(x, (size, CHUNK)))


NO_ROUTING = RoutingParams(
    router_logits=0,
    experts=0,
    shared_packed=0,
    shares=0,
    num_experts=0,
    num_used=0,
    x_row_of_pair=0,
    is_first=0,
)
"""For products in which every token goes through the same matrix."""
