"""kernels.weights.grid_dequant: how a block's scales and signs act; all bytes are compared in test_dequant.py."""

from __future__ import annotations

import numpy as np

from kernels.weights.formats import FORMATS
from kernels.weights.grids import IQ2_XXS, IQ3_S
from tests.kernels.weights.test_dequant import expand


def test_a_block_of_zeros_but_its_scale_repeats_the_first_point() -> None:
    block = np.zeros((1, FORMATS["IQ2_XXS"].block_bytes), np.uint8)
    block[0, :2] = np.frombuffer(np.float16(2).tobytes(), np.uint8)
    np.testing.assert_array_equal(expand(FORMATS["IQ2_XXS"], block)[0], np.tile(IQ2_XXS.coordinates(0), 32) * 2 / 8)


def test_seven_stored_signs_make_an_even_number_of_negative_ones() -> None:
    block = np.zeros((1, FORMATS["IQ2_XXS"].block_bytes), np.uint8)
    block[0, :2] = np.frombuffer(np.float16(1).tobytes(), np.uint8)
    block[0, 6] = 0b0000001
    assert np.flatnonzero(expand(FORMATS["IQ2_XXS"], block)[0] < 0).tolist() == [0, 7]


def test_the_ninth_bit_of_an_index_lies_apart() -> None:
    block = np.zeros((1, FORMATS["IQ3_S"].block_bytes), np.uint8)
    block[0, :2] = np.frombuffer(np.float16(1).tobytes(), np.uint8)
    block[0, 2], block[0, 66] = 255, 1
    assert expand(FORMATS["IQ3_S"], block)[0, :8].tolist() == [
        *IQ3_S.coordinates(IQ3_S.points[511]),
        *IQ3_S.coordinates(0),
    ]
