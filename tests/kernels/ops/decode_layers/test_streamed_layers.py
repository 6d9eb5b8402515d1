"""kernels.ops.decode_layers.streamed_layers: the same bits as of the ops that it stands for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.ops.decode_layers.decode_layers import decode_layers_support
from kernels.ops.decode_layers.streamed_layers import CONTEXT
from kernels.weights.parameters import QueryGrowth
from tests.kernels.ops.decode_layers.layers_case import PHI_3, assert_equal, make_case, with_last_norm

pytestmark = pytest.mark.gpu


@pytest.mark.sanitize("False")
@pytest.mark.parametrize("coded", [False, True])
def test_all_layers_at_once_are_the_layers_one_by_one(device: CudaDevice, coded: bool) -> None:
    rng = np.random.default_rng(coded)
    case = make_case(device, PHI_3, 3, rng, coded=coded)
    assert list(decode_layers_support(device.context, case.model).contexts) == [1]
    for position in (0, 63, 64, 255, 383, 384, CONTEXT - 1, -1):
        assert_equal(case, (position,), rng)


def test_one_layer_and_logits_that_nobody_wants(device: CudaDevice) -> None:
    rng = np.random.default_rng(2)
    shape = replace(PHI_3, embedding="Q4_K", head="Q4_K", query_growth=QueryGrowth(0.1, 64))
    case = make_case(device, shape, 1, rng)
    for position in (3, 64, 300):
        assert_equal(case, (position,), rng)
        assert_equal(case, (position,), rng, ())


def test_of_equal_logits_the_lowest_id_is_drawn_and_none_where_they_are_not_finite(device: CudaDevice) -> None:
    rng = np.random.default_rng(3)
    case = make_case(device, replace(PHI_3, embedding="Q5_K", head="Q5_K"), 1, rng)
    for weight in (0.0, np.nan):
        same = with_last_norm(case, weight)
        assert_equal(same, (100,), rng)
        _, ids, *_ = same.run(np.zeros(1, np.int64), (100,), (0,), "draws")
        assert ids.tolist() == [0 if weight == 0 else -1]
