"""y = x W^T on packed weights, with what comes before (a norm) and after (bias, activation, residual)."""

from __future__ import annotations

import math
import struct
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from kernels.ops.activation import swiglu_rows
from kernels.ops.matmul_tuning import FewShape, are_few, can_norm, few_shape, ring_bytes, tile_shape
from kernels.ops.norm import norm_fields, norm_rows
from kernels.runtime.compiler import Variant
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context
from kernels.runtime.tma import MAP_ALIGNMENT, tensor_map
from kernels.weights.packed import CHUNK, FORMAT_IDS, PackedMatrix, Projection
from kernels.weights.parameters import Norm

BLOCK_OUTPUTS = 128  # of a block of matmul_tile_N
_RECIPROCAL_BITS = 20
_PARAMS = struct.Struct("<12Q f i f 4x q 6i I 9i 2f")


class Epilogue(IntEnum):
    """What becomes of the sums: `enum Epilogue` of matmul.cuh."""

    STORE_HALF = 0
    STORE_FLOAT = 1
    ADD_RESIDUAL = 2
    SWIGLU = 3
    CLAMPED_SWIGLU = 4
    GELU = 5


class Product(NamedTuple):
    """Columns of ``out`` [T, ...] from ``column`` on: the ``epilogue`` of ``x`` times ``matrix``.

    ``x`` [T, K] is float16; with a ``norm`` it is float32 and normed first, with ``x_rows`` [T] those of its rows. In a
    mixture of experts a row of ``x`` may stand for several of ``out``. ``beside``: the product reads nothing that the
    kernel launched before it writes, and writes nothing that that one touches. ``alpha`` and ``limit`` are those of the
    clamped SwiGLU.
    """

    x: DeviceArray
    matrix: PackedMatrix
    out: DeviceArray
    epilogue: Epilogue
    column: int = 0
    norm: Norm | None = None
    x_rows: DeviceArray | None = None
    beside: bool = False
    alpha: float = 0.0
    limit: float = 0.0


class ExpertTiles(NamedTuple):
    """Tiles of ``size`` rows of one expert each, built on the device."""

    entries: DeviceArray  # [max_tiles, 4] int32
    num_tiles: DeviceArray  # [1] int32
    size: int


def variants() -> list[Variant]:
    """What of matmul.cu and matmul_tile.cu is compiled: both for every format."""
    sources = ("matmul/matmul", "matmul/matmul_tile")
    return [(source, {"FORMAT": number}) for source in sources for number in FORMAT_IDS.values()]


def linear(context: Context, x: DeviceArray, layers: Projection, *, out: DeviceArray) -> None:
    """``x`` [T, K] float16 through every one of ``layers``, side by side in ``out`` [T, sum of outputs]."""
    project(context, x, layers, out, _store(out))


def linear_residual(context: Context, x: DeviceArray, layers: Projection, *, out: DeviceArray) -> None:
    """Add ``layers`` of ``x`` [T, K] float16 to the residual stream ``out`` [T, H] float32."""
    project(context, x, layers, out, Epilogue.ADD_RESIDUAL)


def norm_linear(context: Context, x: DeviceArray, norm: Norm, layers: Projection, *, out: DeviceArray) -> None:
    """Norm and projections (QKV): ``x`` [T, H] float32 -> ``out`` [T, sum of outputs], side by side."""
    project(context, x, layers, out, _store(out), norm=norm)


def norm_swiglu(context: Context, x: DeviceArray, norm: Norm, gate_up: Projection, *, out: DeviceArray) -> None:
    """Norm, gate and up projections, silu(gate) * up: ``x`` [T, H] float32 -> ``out`` [T, F] float16.

    In one kernel where gate and up have one format and so lie in one gated matrix.
    """
    if gate_up.parts[0].gated:
        project(context, x, gate_up, out, Epilogue.SWIGLU, norm=norm)
        return
    both = context.scratch((x.shape[0], gate_up.num_outputs), np.float16)
    project(context, x, gate_up, both, Epilogue.STORE_HALF, norm=norm)
    swiglu_rows(context, both, out=out)


def norm_gelu(context: Context, x: DeviceArray, norm: Norm, up: Projection, *, out: DeviceArray) -> None:
    """Norm, up projection, GELU: ``x`` [T, H] float32 -> ``out`` [T, F] float16."""
    project(context, x, up, out, Epilogue.GELU, norm=norm)


def norm_head(
    context: Context, x: DeviceArray, rows: DeviceArray, norm: Norm, head: Projection, *, out: DeviceArray
) -> None:
    """Final norm and output head on some rows: ``x`` [T, H], ``rows`` [R] -> logits ``out`` [R, V] float32."""
    project(context, x, head, out, Epilogue.STORE_FLOAT, norm=norm, x_rows=rows)


def _store(out: DeviceArray) -> Epilogue:
    return Epilogue.STORE_HALF if out.dtype == np.float16 else Epilogue.STORE_FLOAT


def project(
    context: Context,
    x: DeviceArray,
    layers: Projection,
    out: DeviceArray,
    epilogue: Epilogue,
    *,
    norm: Norm | None = None,
    x_rows: DeviceArray | None = None,
) -> None:
    """All matrices of ``layers``; with ``norm``, x is float32 and normed first, else float16."""
    num_tokens = out.shape[0]
    if not num_tokens:
        return
    few = are_few(context.gpu, layers, num_tokens)
    if norm is not None and not (few and num_tokens == 1 and can_norm(context.gpu, layers)):
        normed = context.scratch((num_tokens, x.shape[1]), np.float16)
        norm_rows(context, x, norm, rows=x_rows, out=normed)
        x, x_rows, norm = normed, None, None
    column = 0
    for matrix in layers.parts:
        if few:
            multiply_few(context, Product(x, matrix, out, epilogue, column, norm, x_rows, column > 0))
        else:
            multiply_tiles(context, Product(x, matrix, out, epilogue, column))
        column += matrix.num_rows


def multiply_few(context: Context, product: Product) -> None:
    """A few tokens."""
    num_tokens, is_normed = product.out.shape[0], product.norm is not None
    shape = few_shape(context.gpu, product.matrix, num_tokens, normed=is_normed)
    kernel = "matmul_few" if num_tokens > 1 else "matmul_lone_normed" if is_normed else "matmul_lone"
    _launch_few(context, kernel, (shape.num_blocks, 1, 1), shape, product, _params(product, shape=shape))


def multiply_routed(context: Context, product: Product, router_logits: DeviceArray, num_used: int) -> None:
    """A few tokens, each through the ``num_used`` experts that ``router_logits`` [T, experts] prefer.

    The product's ``out`` is [T * num_used, outputs] by rank; its ``x`` has a row for each token or for each of those.
    """
    num_tokens = router_logits.shape[0]
    shape = few_shape(context.gpu, product.matrix, 1, num_products=num_tokens * num_used)
    params = _params(product, shape=shape, router_logits=router_logits, num_used=num_used)
    _launch_few(context, "matmul_lone_routed", (shape.num_blocks, num_used, num_tokens), shape, product, params)


def _launch_few(
    context: Context, kernel: str, grid: tuple[int, int, int], shape: FewShape, product: Product, params: bytes
) -> None:
    number, threads = FORMAT_IDS[product.matrix.format.name], 32 * shape.num_warps
    context.launch("matmul/matmul", kernel, grid, threads, params, shared_bytes=shape.shared_bytes, FORMAT=number)


def multiply_tiles(context: Context, product: Product, tiles: ExpertTiles | None = None) -> None:
    """Any number of tokens in tiles: in those given, or else in equal ones."""
    matrix, num_tokens = product.matrix, product.out.shape[0]
    if tiles:
        size, num_tiles, splits = tiles.size, tiles.entries.shape[0], 1
    else:
        size, splits = tile_shape(context.gpu, matrix.num_rows, matrix.num_chunks, matrix.num_segments, num_tokens)
        num_tiles = -(-num_tokens // size)
    partials = None
    if splits > 1:
        partials = context.scratch((matrix.num_segments, num_tokens, matrix.num_rows), np.float32)
    params = _params(product, partials=partials, tiles=tiles)
    number = FORMAT_IDS[matrix.format.name]
    grid = (-(-matrix.num_rows // BLOCK_OUTPUTS), num_tiles, splits)
    context.launch(
        "matmul/matmul_tile",
        f"matmul_tile_{size}",
        grid,
        256,
        _with_map(params, product.x, size) if context.gpu.has_wgmma else params,
        shared_bytes=context.gpu.spread(ring_bytes(context.gpu, matrix.format, size), math.prod(grid)),
        FORMAT=number,
    )
    if partials is not None:
        num_outputs = matrix.num_rows // 2 if matrix.gated else matrix.num_rows
        num_blocks = -(-num_tokens * num_outputs // 256)
        context.launch("matmul/matmul", "matmul_reduce", num_blocks, 256, params, FORMAT=number)


def _with_map(params: bytes, x: DeviceArray, size: int) -> bytes:
    """The struct TileParams of matmul_tile.cuh."""
    padding = bytes(-len(params) % MAP_ALIGNMENT)
    return params + padding + tensor_map(x, (size, CHUNK))


def _params(
    product: Product,
    *,
    shape: FewShape | None = None,
    partials: DeviceArray | None = None,
    router_logits: DeviceArray | None = None,
    num_used: int = 0,
    tiles: ExpertTiles | None = None,
) -> bytes:
    """The struct Params of matmul.cuh."""
    x, matrix, out, epilogue, column, norm, x_rows, beside, alpha, limit = product
    assert matrix.gated == (epilogue in (Epilogue.SWIGLU, Epilogue.CLAMPED_SWIGLU))
    assert x.shape[-1] == matrix.width, f"a matrix of {matrix.width} inputs on {x.shape[-1]} columns"
    weights, bias, base = matrix.pointers
    return _PARAMS.pack(
        weights,
        x.pointer,
        x_rows.pointer if x_rows else 0,
        bias,
        base,
        out.pointer,
        partials.pointer if partials else 0,
        router_logits.pointer if router_logits else 0,
        tiles.entries.pointer if tiles else 0,
        tiles.num_tiles.pointer if tiles else 0,
        *norm_fields(norm, matrix.width),
        matrix.expert_bytes,
        matrix.num_rows,
        matrix.width,
        matrix.num_chunks,
        matrix.num_units,
        out.shape[0],
        matrix.num_segments,
        -(-(1 << _RECIPROCAL_BITS) // matrix.num_segments),
        out.shape[1],
        column,
        epilogue,
        *((shape.tiles_at_once, shape.ring_at) if shape else (0, 0)),
        beside,
        router_logits.shape[1] if router_logits else 0,
        num_used,
        x.shape[0] == out.shape[0],
        alpha,
        limit,
    )
