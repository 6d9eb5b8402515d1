"""kernels.weights.parameters: the size of a weight, as its blocks tell it."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.weights.formats import FORMATS
from kernels.weights.parameters import Weight


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("leading", [(), (4,)], ids=["a matrix", "stacked experts"])
def test_a_weight_has_as_many_inputs_as_its_rows_hold_numbers(name: str, leading: tuple[int, ...]) -> None:
    data = np.zeros((*leading, 6, FORMATS[name].row_bytes(512)), np.uint8)
    weight = Weight("blk.0.weight", FORMATS[name], data)
    assert (weight.num_outputs, weight.num_inputs) == (6, 512)
