"""kernels.upload without a GPU: how pieces are cut to fit the buffers."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.array import Array
from kernels.upload import Piece, cut


def consume(_staging: Array, _start: int, _count: int) -> None: ...


def piece(num_granules: int, granule: int) -> Piece:
    return Piece(np.zeros(num_granules * granule, np.uint8), granule, consume)


def test_pieces_are_cut_into_whole_granules_in_order() -> None:
    pieces = [piece(7, 30), piece(0, 5), piece(1, 100), piece(200, 1)]
    parts = [(pieces.index(which), start, count) for which, start, count in cut(pieces, 100)]
    assert parts == [(0, 0, 3), (0, 3, 3), (0, 6, 1), (2, 0, 1), (3, 0, 100), (3, 100, 100)]


@pytest.mark.parametrize("bad", [Piece(np.zeros(7, np.uint8), 2, consume), piece(1, 101)])
def test_pieces_that_cannot_be_cut_are_a_bug(bad: Piece) -> None:
    with pytest.raises(AssertionError):
        list(cut([bad], 100))
