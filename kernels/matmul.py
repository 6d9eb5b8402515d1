"""y = x W^T on packed weights, with what comes before (a norm) and after (bias, activation, residual)."""

from __future__ import annotations

import math
import struct
from enum import IntEnum

import numpy as np

from kernels.activation import swiglu_rows
from kernels.array import Array, pointer_of
from kernels.launch import Context
from kernels.layers import Norm
from kernels.loader import Variant
from kernels.matmul_shapes import FewShape, are_few, can_norm, few_shape, ring_bytes, tile_shape
from kernels.norm import norm_fields, norm_rows
from kernels.packed import CHUNK, FORMAT_IDS, PackedMatrix, Projection
from kernels.tensor_map import MAP_ALIGNMENT, tensor_map

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


def variants() -> list[Variant]:
    return [(stem, {"FORMAT": number}) for stem in ("matmul", "matmul_tile") for number in FORMAT_IDS.values()]


def linear(context: Context, x: Array, layers: Projection, *, out: Array) -> None:
    """``x`` [T, K] float16 through every one of ``layers``, side by side in ``out`` [T, sum of outputs]."""
    project(context, x, layers, out, _store(out))


def linear_residual(context: Context, x: Array, layers: Projection, *, out: Array) -> None:
    """Add ``layers`` of ``x`` [T, K] float16 to the residual stream ``out`` [T, H] float32."""
    project(context, x, layers, out, Epilogue.ADD_RESIDUAL)


def norm_linear(context: Context, x: Array, norm: Norm, layers: Projection, *, out: Array) -> None:
    """Norm and projections (QKV): ``x`` [T, H] float32 -> ``out`` [T, sum of outputs], side by side."""
    project(context, x, layers, out, _store(out), norm=norm)


def norm_swiglu(context: Context, x: Array, norm: Norm, gate_up: Projection, *, out: Array) -> None:
    """Norm, gate and up projections, silu(gate) * up: ``x`` [T, H] float32 -> ``out`` [T, F] float16.

    In one kernel where gate and up have one format and so lie in one gated matrix.
    """
    if gate_up.parts[0].gated:
        project(context, x, gate_up, out, Epilogue.SWIGLU, norm=norm)
        return
    both = context.scratch((x.shape[0], gate_up.num_outputs), np.float16)
    project(context, x, gate_up, both, Epilogue.STORE_HALF, norm=norm)
    swiglu_rows(context, both, out=out)


def norm_gelu(context: Context, x: Array, norm: Norm, up: Projection, *, out: Array) -> None:
    """Norm, up projection, GELU: ``x`` [T, H] float32 -> ``out`` [T, F] float16."""
    project(context, x, up, out, Epilogue.GELU, norm=norm)


def norm_head(context: Context, x: Array, rows: Array, norm: Norm, head: Projection, *, out: Array) -> None:
    """Final norm and output head on some rows: ``x`` [T, H], ``rows`` [R] -> logits ``out`` [R, V] float32."""
    project(context, x, head, out, Epilogue.STORE_FLOAT, norm=norm, x_rows=rows)


def _store(out: Array) -> Epilogue:
    return Epilogue.STORE_HALF if out.dtype == np.float16 else Epilogue.STORE_FLOAT


def project(
    context: Context,
    x: Array,
    layers: Projection,
    out: Array,
    epilogue: Epilogue,
    *,
    norm: Norm | None = None,
    x_rows: Array | None = None,
) -> None:
    """All matrices of ``layers``; with ``norm``, x is float32 and normed first, else float16."""
    num_tokens = out.shape[0]
    if not num_tokens:
        return
    few = are_few(context.chip, layers, num_tokens)
    if norm is not None and not (few and num_tokens == 1 and can_norm(context.chip, layers)):
        normed = context.scratch((num_tokens, x.shape[1]), np.float16)
        norm_rows(context, x, norm, rows=x_rows, out=normed)
        x, x_rows, norm = normed, None, None
    column = 0
    for matrix in layers.parts:
        if few:
            multiply_few(context, x, matrix, num_tokens, out, epilogue, column=column, norm=norm, x_rows=x_rows,
                         beside=column > 0)  # fmt: skip
        else:
            multiply_tiles(context, x, matrix, num_tokens, out, epilogue, column=column)
        column += matrix.num_rows


def multiply_few(
    context: Context,
    x: Array,
    matrix: PackedMatrix,
    num_tokens: int,
    out: Array,
    epilogue: Epilogue,
    *,
    column: int = 0,
    norm: Norm | None = None,
    x_rows: Array | None = None,
    beside: bool = False,
) -> None:
    """A few tokens.

    ``beside``: it reads nothing that the kernel launched before it writes, and writes nothing that that one touches.
    """
    shape = few_shape(context.chip, matrix, num_tokens, normed=norm is not None)
    params = _params(x, matrix, num_tokens, out, epilogue, column, norm=norm, x_rows=x_rows, shape=shape,
                     beside=beside)  # fmt: skip
    kernel = "matmul_few" if num_tokens > 1 else "matmul_lone" if norm is None else "matmul_lone_normed"
    _launch_few(context, kernel, (shape.num_blocks, 1, 1), shape, params, matrix)


def multiply_routed(
    context: Context,
    x: Array,
    matrix: PackedMatrix,
    router_logits: Array,
    num_used: int,
    out: Array,
    epilogue: Epilogue,
    *,
    alpha: float = 0.0,
    limit: float = 0.0,
) -> None:
    """A few tokens, each through the ``num_used`` experts that ``router_logits`` [T, experts] prefer: ``out`` [T *
    num_used, outputs] by rank. ``x`` has a row for each token or for each of those."""
    num_tokens, num_experts = router_logits.shape
    num_pairs = num_tokens * num_used
    shape = few_shape(context.chip, matrix, 1, num_products=num_pairs)
    params = _params(x, matrix, num_pairs, out, epilogue, 0, shape=shape, router_logits=router_logits,
                     num_experts=num_experts, num_used=num_used, alpha=alpha, limit=limit)  # fmt: skip
    _launch_few(context, "matmul_lone_routed", (shape.num_blocks, num_used, num_tokens), shape, params, matrix)


def _launch_few(
    context: Context, kernel: str, grid: tuple[int, int, int], shape: FewShape, params: bytes, matrix: PackedMatrix
) -> None:
    number = FORMAT_IDS[matrix.format.name]
    context.launch("matmul", kernel, grid, 32 * shape.num_warps, params, shared_bytes=shape.shared_bytes, FORMAT=number)


def multiply_tiles(
    context: Context,
    x: Array,
    matrix: PackedMatrix,
    num_tokens: int,
    out: Array,
    epilogue: Epilogue,
    *,
    column: int = 0,
    tiles: tuple[Array, Array, int] | None = None,
    alpha: float = 0.0,
    limit: float = 0.0,
) -> None:
    """Any number of tokens in tiles; ``tiles``: (entries [max_tiles, 4], their number [1], tokens in a tile) built on
    the device, each of one expert."""
    if tiles:
        size, num_tiles, splits = tiles[2], tiles[0].shape[0], 1
    else:
        size, splits = tile_shape(context.chip, matrix.num_rows, matrix.num_chunks, matrix.num_segments, num_tokens)
        num_tiles = -(-num_tokens // size)
    partials = None
    if splits > 1:
        partials = context.scratch((matrix.num_segments, num_tokens, matrix.num_rows), np.float32)
    params = _params(x, matrix, num_tokens, out, epilogue, column, partials=partials, tiles=tiles, alpha=alpha,
                     limit=limit)  # fmt: skip
    number = FORMAT_IDS[matrix.format.name]
    grid = (-(-matrix.num_rows // BLOCK_OUTPUTS), num_tiles, splits)
    context.launch(
        "matmul_tile",
        f"matmul_tile_{size}",
        grid,
        256,
        _with_map(params, x, size) if context.chip.has_wgmma else params,
        shared_bytes=context.chip.spread(ring_bytes(context.chip, matrix.format, size), math.prod(grid)),
        FORMAT=number,
    )
    if partials is not None:
        num_outputs = matrix.num_rows // 2 if matrix.gated else matrix.num_rows
        context.launch("matmul", "matmul_reduce", -(-num_tokens * num_outputs // 256), 256, params, FORMAT=number)


def _with_map(params: bytes, x: Array, size: int) -> bytes:
    """The struct TileParams of matmul_tile.cuh."""
    padding = bytes(-len(params) % MAP_ALIGNMENT)
    return params + padding + tensor_map(x, (size, CHUNK))


def _params(
    x: Array,
    matrix: PackedMatrix,
    num_tokens: int,
    out: Array,
    epilogue: Epilogue,
    column: int,
    *,
    norm: Norm | None = None,
    x_rows: Array | None = None,
    partials: Array | None = None,
    router_logits: Array | None = None,
    num_experts: int = 0,
    num_used: int = 0,
    tiles: tuple[Array, Array, int] | None = None,
    shape: FewShape | None = None,
    beside: bool = False,
    alpha: float = 0.0,
    limit: float = 0.0,
) -> bytes:
    assert matrix.gated == (epilogue in (Epilogue.SWIGLU, Epilogue.CLAMPED_SWIGLU))
    assert x.shape[-1] == matrix.width, f"a matrix of {matrix.width} inputs on {x.shape[-1]} columns"
    tile_entries, num_tiles = tiles[:2] if tiles else (None, None)
    return _PARAMS.pack(
        matrix.packed.pointer,
        x.pointer,
        pointer_of(x_rows),
        pointer_of(matrix.bias),
        pointer_of(matrix.base),
        out.pointer,
        pointer_of(partials),
        pointer_of(router_logits),
        pointer_of(tile_entries),
        pointer_of(num_tiles),
        *norm_fields(norm, matrix.width),
        matrix.expert_bytes,
        matrix.num_rows,
        matrix.width,
        matrix.num_chunks,
        matrix.num_units,
        num_tokens,
        matrix.num_segments,
        -(-(1 << _RECIPROCAL_BITS) // matrix.num_segments),
        out.shape[1],
        column,
        epilogue,
        *((shape.tiles_at_once, shape.ring_at) if shape else (0, 0)),
        beside,
        num_experts,
        num_used,
        x.shape[0] == num_tokens,
        alpha,
        limit,
    )
