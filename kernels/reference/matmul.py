"""Matrices in their storage format, and y = x W^T + b on them.

A row of the result is the same bits whatever rows are computed with it. BLAS takes other code paths for other shapes,
so it only ever sees one: `TILE_ROWS` rows (padded with zeros) against a tile of the matrix whose shape is fixed with
the matrix. And it is asked for W x^T, not x W^T, so that the rows are the dimension that its kernels vectorise: a row
is a lane, and lanes are treated alike. (As x W^T, OpenBLAS's Haswell kernel takes 12 of 16 rows one way and 4 another.)
Weights stay in their blocks; tiles are expanded when they are used, and the first ones to be used stay
expanded, as many as the budget allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from kernels.weights.dequant import dequantise
from kernels.weights.formats import Format

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

TILE_ROWS = 16
TILE_ELEMENTS = 1 << 20  # of a matrix: 4 MB as float32


class TileBudget:
    """How many bytes of expanded tiles may stay in memory.

    It fills and then stays as it is: a forward pass uses every matrix once and in the same order, where evicting the
    least recently used tile would always throw away the one that is needed next.
    """

    def __init__(self, max_bytes: int) -> None:
        self._free_bytes = max_bytes

    def admit(self, num_bytes: int) -> bool:
        """Whether a tile of ``num_bytes`` may stay; counts it if so."""
        if num_bytes > self._free_bytes:
            return False
        self._free_bytes -= num_bytes
        return True


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """A weight of ``shape`` (outputs, inputs) as its blocks ``data``, uint8 [outputs, row_bytes]."""

    format: Format
    shape: tuple[int, int]
    data: UInt8
    budget: TileBudget
    _tiles: dict[int, Float32] = field(default_factory=dict, repr=False)

    @property
    def tile_outputs(self) -> int:
        """Outputs of a tile: depends on the matrix's shape only."""
        return max(TILE_ROWS, TILE_ELEMENTS // self.shape[1] // TILE_ROWS * TILE_ROWS)

    def tile(self, start: int) -> Float32:
        """Weights of the outputs ``start:start + tile_outputs``, float32 [outputs, inputs]."""
        tile = self._tiles.get(start)
        if tile is None:
            tile = self.rows(slice(start, start + self.tile_outputs))
            if self.budget.admit(tile.nbytes):
                self._tiles[start] = tile
        return tile

    def rows(self, which: slice | NDArray[np.int32]) -> Float32:
        """Some outputs' weights, float32 [n, inputs]."""
        blocks = self.data[which]
        rows = np.empty((blocks.shape[0], self.shape[1]), np.float32)
        dequantise(self.format, blocks, out=rows)
        return rows


class Linear(msgspec.Struct, frozen=True, eq=False):
    """y = x W^T + b."""

    matrix: Matrix
    bias: Float32 | None = None  # [outputs]


def linear(x: Float32, layers: Sequence[Linear], *, out: Float32) -> None:
    """``x`` [T, K] through every one of ``layers``, side by side in ``out`` [T, sum of outputs]."""
    num_rows, width = x.shape
    num_tiles = -(-num_rows // TILE_ROWS)
    padded = x
    if num_rows % TILE_ROWS or not x.flags.c_contiguous:
        padded = np.zeros((num_tiles * TILE_ROWS, width), np.float32)
        padded[:num_rows] = x
    lanes = padded.reshape(num_tiles, TILE_ROWS, width).transpose(0, 2, 1)
    column = 0
    for layer in layers:
        num_outputs, num_inputs = layer.matrix.shape
        assert num_inputs == width, f"a matrix of {num_inputs} inputs on {width} columns"
        for start in range(0, num_outputs, layer.matrix.tile_outputs):
            weights = layer.matrix.tile(start)
            product = np.matmul(weights, lanes)  # [tiles, outputs, TILE_ROWS]
            product = product.transpose(0, 2, 1).reshape(-1, weights.shape[0])[:num_rows]
            columns = out[:, column + start : column + start + weights.shape[0]]
            if layer.bias is None:
                columns[:] = product
            else:
                np.add(product, layer.bias[start : start + weights.shape[0]], out=columns)
        column += num_outputs


def linear_residual(x: Float32, layers: Sequence[Linear], *, scale: float = 1.0, out: Float32) -> None:
    """Add ``scale`` times ``layers`` of ``x`` [T, K] to the residual stream ``out`` [T, H]."""
    product = np.empty_like(out)
    linear(x, layers, out=product)
    product *= np.float32(scale)
    out += product
