"""kernels.upload without a GPU: how pieces are cut to fit the buffers."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.array import Array
from kernels.upload import Piece, cut


def consume(_staging: Array, _start: int, _count: int) -> None: ...


def piece(num_granules: int, granule: int) -> Piece:
    return Piece(np.zeros(num_granules * granule, np.uint8), granule, consume)


def test_pieces_are_cut_into_whole_granules_in_order_and_small_ones_share_a_buffer() -> None:
    pieces = [piece(7, 300), piece(0, 5), piece(1, 1000), piece(2000, 1), piece(3, 100)]
    batches = [[(pieces.index(part.piece), *part[1:]) for part in parts] for parts in cut(pieces, 1024)]
    assert batches == [
        [(0, 0, 3, 0)],
        [(0, 3, 3, 0)],
        [(0, 6, 1, 0)],
        [(2, 0, 1, 0)],
        [(3, 0, 1024, 0)],
        [(3, 1024, 976, 0)],
        [(4, 0, 3, 0)],
    ]
    small = [piece(3, 100), piece(1, 10), piece(9, 100)]
    assert [[tuple(part)[1:] for part in parts] for parts in cut(small, 1024)] == [
        [(0, 3, 0), (0, 1, 512), (0, 2, 768)],
        [(2, 7, 0)],
    ]


@pytest.mark.parametrize("bad", [Piece(np.zeros(7, np.uint8), 2, consume), piece(1, 101)])
def test_pieces_that_cannot_be_cut_are_a_bug(bad: Piece) -> None:
    with pytest.raises(AssertionError):
        list(cut([bad], 100))
