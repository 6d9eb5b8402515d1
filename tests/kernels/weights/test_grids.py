"""kernels.weights.grids: the points are those of the gguf library."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from kernels.weights import grids
from kernels.weights.grids import Grid

GRIDS = {"IQ2_XXS": grids.IQ2_XXS, "IQ2_XS": grids.IQ2_XS, "IQ2_S": grids.IQ2_S, "IQ3_XXS": grids.IQ3_XXS,
         "IQ3_S": grids.IQ3_S}  # fmt: skip


@pytest.mark.parametrize("name", GRIDS)
def test_the_points_are_those_of_the_gguf_library(name: str) -> None:
    library, grid = getattr(gguf.quants, name), GRIDS[name]
    library.init_grid()
    points = [grid.coordinates(point) for point in grid.points]
    np.testing.assert_array_equal(points, library.grid.reshape(library.grid_shape))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_the_points_ascend_and_every_index_of_so_many_bits_is_one(grid: Grid) -> None:
    assert list(grid.points) == sorted(set(grid.points))
    assert len(grid.points) == 1 << grid.index_bits
