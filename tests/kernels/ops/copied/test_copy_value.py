"""Which matrices are worth a float16 copy."""

from __future__ import annotations

import pytest

from kernels.ops.copied.copy_value import copy_value
from kernels.runtime.gpu_spec import A100, H100
from tests.kernels.ops.product_case import matrix_of


@pytest.mark.parametrize(
    ("name", "num_rows", "width"),
    [("Q5_0", 9728, 896), ("Q4_K", 896, 4864), ("Q5_K", 9216, 3072), ("Q4_K", 28672, 4096)],
)
def test_matrices_of_real_models_are_worth_some_microseconds(name: str, num_rows: int, width: int) -> None:
    assert 1 < copy_value(H100, matrix_of(name, num_rows, width)) < 200


def test_what_no_kernel_multiplies_by_or_is_too_large_is_worth_nothing() -> None:
    assert copy_value(A100, matrix_of("Q5_0", 9728, 896)) == 0
    assert copy_value(H100, matrix_of("MXFP4", 9728, 896)) == 0
    assert copy_value(H100, matrix_of("Q8_0", 151936, 896)) == 0, "an output head"
