"""y = x W^T on packed weights, with what comes before (a norm) and after (bias, activation, residual)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from kernels.ops.activation import geglu_rows, swiglu_rows
from kernels.ops.copied import copied_matmul, copied_slices
from kernels.ops.copied.copied_matmul import LEAST_TOKENS, copied_shape, multiply_copied
from kernels.ops.copied.copied_slices import multiply_sliced_copy, sliced_shape
from kernels.ops.copied.copy_value import OVER_ESTIMATE_US
from kernels.ops.matmul_params import (
    NO_ROUTING,
    Epilogue,
    ExpertTiles,
    Product,
    RoutingParams,
    SmallBatchParams,
    TiledParams,
    hopper_params,
    output_params,
    tiled_params,
)
from kernels.ops.matmul_tuning import (
    BLOCK_OUTPUTS,
    SmallBatchShape,
    TileShape,
    can_norm,
    gains_in_narrow_blocks,
    is_small_batch,
    ring_bytes,
    small_batch_shape,
    tile_shape,
)
from kernels.ops.norm import NO_NORM, DeviceNorm, norm_params, norm_residual, norm_rows
from kernels.ops.sliced_k import sliced_k_matmul
from kernels.ops.sliced_k.sliced_k_matmul import multiply_sliced_k, sliced_k_shape
from kernels.ops.stream_k import stream_k_matmul
from kernels.ops.stream_k.stream_k_matmul import multiply_stream_k, stream_k_shape
from kernels.ops.unpacked import unpacked_matmul
from kernels.ops.unpacked.unpacked_matmul import multiply_unpacked, unpacked_shape
from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_constants import declare_constants
from kernels.runtime.device_array import DeviceArray, pointer_of
from kernels.runtime.launcher import Context
from kernels.weights.formats import FORMATS
from kernels.weights.packed import PackedMatrix, Projection

_SOURCE, _NARROW_SOURCE = "matmul/matmul", "matmul/matmul_narrow"
_REDUCE_THREADS = 128
_OF_NARROW_BLOCKS = ("matmul_gemv", "matmul_gemv_normed")


def variants() -> list[Variant]:
    """What of matmul.cu and matmul_tiled.cu is compiled: both for every format; and of matmul_narrow.cu."""
    every = [(source, name) for source in (_SOURCE, "matmul/matmul_tiled") for name in FORMATS]
    narrow = [(_NARROW_SOURCE, name) for name, format_ in FORMATS.items() if format_.narrow_warps]
    return [(source, {"FORMAT": name}) for source, name in every + narrow]


def linear(context: Context, x: DeviceArray, layers: Projection, *, out: DeviceArray) -> None:
    """``x`` [T, K] float16 through every one of ``layers``, side by side in ``out`` [T, sum of outputs]."""
    project(context, x, layers, out, _store(out))


def linear_residual(
    context: Context, x: DeviceArray, layers: Projection, *, scale: float = 1.0, out: DeviceArray
) -> None:
    """Add ``scale`` times ``layers`` of ``x`` [T, K] float16 to the residual stream ``out`` [T, H] float32."""
    project(context, x, layers, out, Epilogue.ADD_RESIDUAL, alpha=scale)


def linear_norm_residual(
    context: Context,
    x: DeviceArray,
    layers: Projection,
    norm: DeviceNorm,
    *,
    scale: float = 1.0,
    out: DeviceArray,
) -> None:
    """Add ``layers`` of ``x`` [T, K] float16, normed, to the residual stream ``out`` [T, H] float32.

    The stream is then multiplied by ``scale``. What is normed is float32, whatever its size. A norm that is narrower
    than H is one of each group of so many columns.
    """
    branch, width = context.scratch(out.shape, np.float32), norm.weight.size
    project(context, x, layers, branch, Epilogue.STORE_FLOAT)
    norm_residual(context, branch.reshape(-1, width), norm, scale=scale, out=out.reshape(-1, width))


def norm_linear(context: Context, x: DeviceArray, norm: DeviceNorm, layers: Projection, *, out: DeviceArray) -> None:
    """Norm and projections (QKV): ``x`` [T, H] float32 -> ``out`` [T, sum of outputs], side by side."""
    project(context, x, layers, out, _store(out), norm=norm)


def norm_swiglu(context: Context, x: DeviceArray, norm: DeviceNorm, gate_up: Projection, *, out: DeviceArray) -> None:
    """Norm, gate and up projections, silu(gate) * up: ``x`` [T, H] float32 -> ``out`` [T, F] float16.

    In one kernel where gate and up have one format and so lie in one gated matrix.
    """
    if gate_up.matrices[0].gated:
        project(context, x, gate_up, out, Epilogue.SWIGLU, norm=norm)
        return
    both = context.scratch((x.shape[0], gate_up.num_outputs), np.float16)
    project(context, x, gate_up, both, Epilogue.STORE_HALF, norm=norm)
    swiglu_rows(context, both, out=out)


def norm_geglu(
    context: Context, x: DeviceArray, norm: DeviceNorm, gate_up: Projection, scale: float, *, out: DeviceArray
) -> None:
    """Norm, gate and up projections, gelu(gate) * up * scale: ``x`` [T, H] float32 -> ``out`` [T, F] float16.

    In one kernel where gate and up have one format and so lie in one gated matrix.
    """
    if gate_up.matrices[0].gated:
        project(context, x, gate_up, out, Epilogue.GEGLU, norm=norm, alpha=scale)
        return
    both = context.scratch((x.shape[0], gate_up.num_outputs), np.float16)
    project(context, x, gate_up, both, Epilogue.STORE_HALF, norm=norm)
    geglu_rows(context, both, scale, out=out)


def norm_gelu(context: Context, x: DeviceArray, norm: DeviceNorm, up: Projection, *, out: DeviceArray) -> None:
    """Norm, up projection, GELU: ``x`` [T, H] float32 -> ``out`` [T, F] float16."""
    project(context, x, up, out, Epilogue.GELU, norm=norm)


def norm_head(
    context: Context,
    x: DeviceArray,
    rows: DeviceArray,
    norm: DeviceNorm,
    head: Projection,
    *,
    softcap: float = 0.0,
    out: DeviceArray,
) -> None:
    """Final norm and output head on some rows: ``x`` [T, H], ``rows`` [R] -> logits ``out`` [R, V] float32.

    With a ``softcap`` they are softcap * tanh(logits / softcap).
    """
    epilogue = Epilogue.SOFTCAP if softcap else Epilogue.STORE_FLOAT
    project(context, x, head, out, epilogue, norm=norm, x_rows=rows, alpha=softcap or 1.0)


def _store(out: DeviceArray) -> Epilogue:
    return Epilogue.STORE_HALF if out.dtype == np.float16 else Epilogue.STORE_FLOAT


def project(
    context: Context,
    x: DeviceArray,
    layers: Projection,
    out: DeviceArray,
    epilogue: Epilogue,
    *,
    norm: DeviceNorm | None = None,
    x_rows: DeviceArray | None = None,
    alpha: float = 1.0,
) -> None:
    """All matrices of ``layers``; with ``norm``, x is float32 and normed first, else float16."""
    num_tokens = out.shape[0]
    if not num_tokens:
        return
    small = is_small_batch(context.gpu, layers, num_tokens)
    if norm is not None and not (small and num_tokens == 1 and can_norm(context.gpu, layers)):
        normed = context.scratch((num_tokens, x.shape[1]), np.float16)
        norm_rows(context, x, norm, rows=x_rows, out=normed)
        x, x_rows, norm = normed, None, None
    multiply, column = multiply_small_batch if small else _multiply_many, 0
    for matrix in layers.matrices:
        is_overlapped = column == 0 and len(layers.matrices) > 1
        multiply(context, Product(x, matrix, out, epilogue, column, norm, x_rows, column > 0, is_overlapped, alpha))
        column += matrix.num_rows


def multiply_small_batch(context: Context, product: Product) -> None:
    """One to four tokens."""
    num_tokens, is_normed = product.out.shape[0], product.norm is not None
    shape = small_batch_shape(context.gpu, product.matrix, num_tokens, normed=is_normed)
    kernel = "matmul_small_batch" if num_tokens > 1 else "matmul_gemv_normed" if is_normed else "matmul_gemv"
    launch_small_batch(context, kernel, (shape.num_blocks, 1, 1), shape, product)


def launch_small_batch(
    context: Context,
    kernel: str,
    grid: tuple[int, int, int],
    shape: SmallBatchShape,
    product: Product,
    routing: RoutingParams = NO_ROUTING,
) -> None:
    """One of the kernels for one to four tokens."""
    matrix = product.matrix
    is_narrow = kernel in _OF_NARROW_BLOCKS and gains_in_narrow_blocks(matrix, shape, normed=product.norm is not None)
    waits = product.is_overlapped and kernel in _OF_NARROW_BLOCKS and shape.num_warps < matrix.format.narrow_warps
    params = SmallBatchParams(
        x=product.x.pointer,
        tiles_at_once=shape.tiles_at_once,
        flags=product.flags(waits=waits),
        matrix=matrix.params,
        x_rows=pointer_of(product.x_rows),
        output=output_params(product),
        norm=norm_params(product.norm, matrix.width) if product.norm else NO_NORM,
        ring_at=shape.ring_at,
        num_tokens=product.out.shape[0],
        routing=routing,
    )
    source, threads = _NARROW_SOURCE if is_narrow else _SOURCE, 32 * (shape.num_warps + waits)
    context.launch(source, kernel, grid, threads, params, shared_bytes=shape.shared_bytes, FORMAT=matrix.format.name)


_OF_ESTIMATE = 0.88
"""Products on unpacked weights take less than is estimated where they are of as few tokens as stream-K is for."""


def _multiply_many(context: Context, product: Product) -> None:
    """Any number of tokens, by the kernel that takes less time."""
    num_tokens, matrix = product.out.shape[0], product.matrix
    has_copy = matrix.half_copy is not None
    multiply: Callable[[Context, Product], None] = multiply_tiled
    least_us = _tile_shape(context, matrix, num_tokens).estimated_us
    if not has_copy and unpacked_matmul.is_suitable(context.gpu, product):
        size, estimated_us = unpacked_shape(context.gpu, matrix, num_tokens)
        if estimated_us < least_us:
            multiply = partial(multiply_unpacked, size=size)
            least_us = estimated_us * _OF_ESTIMATE
    if stream_k_matmul.is_suitable(context.gpu, product):
        shape = stream_k_shape(context.gpu, matrix, num_tokens)
        if shape.estimated_us < least_us:
            multiply, least_us = partial(multiply_stream_k, shape=shape), shape.estimated_us
    if sliced_k_matmul.is_suitable(context.gpu, product):
        size, estimated_us = sliced_k_shape(context.gpu, matrix, num_tokens)
        if estimated_us < least_us:
            multiply, least_us = partial(multiply_sliced_k, size=size), estimated_us
    # Of one partition stream-K is as fast.
    if has_copy and num_tokens >= (LEAST_TOKENS if matrix.num_partitions > 1 else stream_k_matmul.MAX_TOKENS + 1):
        least_us += OVER_ESTIMATE_US
        if unpacked_matmul.is_suitable(context.gpu, product):
            size, estimated_us = unpacked_shape(context.gpu, matrix, num_tokens)
            if estimated_us < least_us:
                multiply, least_us = partial(multiply_unpacked, size=size), estimated_us
        if copied_matmul.is_suitable(context.gpu, product):
            size, estimated_us = copied_shape(context.gpu, matrix, num_tokens)
            if estimated_us < least_us:
                multiply, least_us = partial(multiply_copied, size=size), estimated_us
        if copied_slices.is_suitable(context.gpu, product):
            size, estimated_us = sliced_shape(context.gpu, matrix, num_tokens)
            if estimated_us < least_us:
                multiply = partial(multiply_sliced_copy, size=size)
    multiply(context, product)


def _tile_shape(context: Context, matrix: PackedMatrix, num_tokens: int) -> TileShape:
    return tile_shape(context.gpu, matrix.num_rows, matrix.num_chunks, matrix.num_partitions, num_tokens)


def multiply_tiled(context: Context, product: Product, tiles: ExpertTiles | None = None) -> None:
    """Any number of tokens in tiles: in those given, or else in equal ones."""
    x, matrix, num_tokens = product.x, product.matrix, product.out.shape[0]
    if tiles:
        size, num_tiles, grid_partitions = tiles.size, tiles.entries.shape[0], 1
    else:
        size, grid_partitions, _ = _tile_shape(context, matrix, num_tokens)
        num_tiles = -(-num_tokens // size)
    shape = matrix.num_partitions, num_tokens, matrix.num_rows
    partials = context.scratch(shape, np.float32) if grid_partitions > 1 else None
    params = tiled_params(product, tiles, partials)
    hopper = hopper_params(params, x, size) if context.gpu.has_wgmma else None
    grid = (-(-matrix.num_rows // BLOCK_OUTPUTS), num_tiles, grid_partitions)
    context.launch(
        "matmul/matmul_tiled",
        f"matmul_tiled_{size}",
        grid,
        256,
        hopper or params,
        shared_bytes=context.gpu.spread(ring_bytes(context.gpu, matrix.format, size), math.prod(grid)),
        FORMAT=matrix.format.name,
    )
    if partials is not None:
        _reduce(context, product, params)


def _reduce(context: Context, product: Product, params: TiledParams) -> None:
    """Add up the partitions that `multiply_tiled` has left."""
    matrix, num_tokens = product.matrix, product.out.shape[0]
    has_quads = not (matrix.num_rows % 16 or product.column % 4 or product.out.shape[1] % 4)
    kernel, at_once = ("matmul_reduce_quads", 4) if has_quads else ("matmul_reduce", 1)
    num_outputs = matrix.num_rows // 2 if matrix.gated else matrix.num_rows
    grid = -(-num_outputs // (at_once * _REDUCE_THREADS)), num_tokens
    context.launch(_SOURCE, kernel, grid, _REDUCE_THREADS, params, FORMAT=matrix.format.name)


declare_constants("matmul/matmul.cu", REDUCE_THREADS=_REDUCE_THREADS)
