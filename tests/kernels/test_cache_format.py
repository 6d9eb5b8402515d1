"""kernels.cache_format: heads as codes of 8 bits with a scale."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.cache_format import FLOAT16, FLOAT32, MAX_CODE, Q8, dequantise, quantise


@pytest.mark.parametrize("size", [1e-4, 0.02, 1.0, 300.0, 1e5])
def test_an_element_is_off_by_half_a_step_and_what_the_scale_was_rounded_by(size: float) -> None:
    heads = np.random.default_rng(0).normal(scale=size, size=(50, 3, 64)).astype(np.float32)
    codes, scales = quantise(heads)
    assert (codes.dtype, codes.shape) == (Q8.dtype, heads.shape)
    assert (scales.dtype, scales.shape) == (Q8.scale_dtype, heads.shape[:-1])
    assert np.abs(codes).max() == MAX_CODE and codes.min() >= -MAX_CODE
    exact = np.abs(heads.astype(np.float64)).max(axis=-1) / 127
    np.testing.assert_allclose(scales, exact, rtol=2.0**-11, atol=2.0**-25)  # normal float16, subnormal
    off = np.abs(codes * scales.astype(np.float64)[..., None] - heads)
    beyond = np.maximum(0, exact - scales) * 127  # of the largest, where the scale was rounded down
    assert (off <= (0.5001 * scales.astype(np.float64) + beyond)[..., None]).all()


def test_what_is_read_is_the_product_in_float32() -> None:
    codes, scales = quantise(np.random.default_rng(1).normal(size=(9, 2, 16)).astype(np.float32))
    read = dequantise(codes, scales)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, codes * scales.astype(np.float64)[..., None])  # 8 bits by 11: it is exact
    again = quantise(read)
    np.testing.assert_array_equal(again[0], codes)
    np.testing.assert_array_equal(again[1], scales)


def test_halves_go_to_the_even_code_and_the_largest_to_127_on_either_side() -> None:
    codes, scales = quantise(np.array([[127, 0.5, 1.5, -0.5, -1.5, 2.5], [-127, 126.5, -126.5, 0, 1, 0]], np.float32))
    assert scales.tolist() == [1, 1]
    assert codes.tolist() == [[127, 0, 2, 0, -2, 2], [-127, 126, -126, 0, 1, 0]]


def test_a_head_of_zeros_or_next_to_zeros_is_read_as_zeros() -> None:
    codes, scales = quantise(np.array([[0, -0.0], [1e-30, -1e-7]], np.float32))
    assert (codes == 0).all() and (scales == 0).all()
    assert (dequantise(codes, scales) == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_a_head_that_no_scale_can_hold_is_read_as_nan_and_its_neighbours_are_not(value: float) -> None:
    codes, scales = quantise(np.array([[1, value], [1, 2]], np.float32))
    assert (codes[0] == 0).all() and not np.isfinite(scales[0])
    read = dequantise(codes, scales)
    assert np.isnan(read[0]).all()
    np.testing.assert_allclose(read[1], [1, 2], rtol=0.01)


def test_a_format_knows_what_a_head_takes() -> None:
    assert [each.head_bytes(64) for each in (FLOAT32, FLOAT16, Q8)] == [256, 128, 66]
    assert [each.num_arrays for each in (FLOAT32, FLOAT16, Q8)] == [2, 2, 4]
