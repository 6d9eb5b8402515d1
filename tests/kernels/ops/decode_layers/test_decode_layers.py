"""kernels.ops.decode_layers: the same bits as of the ops that it stands for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.ops.decode_layers.decode_layers import decode_layers_support
from kernels.weights.parameters import QueryGrowth
from tests.kernels.ops.decode_layers.layers_case import QWEN, assert_equal, make_case, with_last_norm

pytestmark = pytest.mark.gpu

# Not by this tool. Where a block's warps write shared memory that others have read in the phase before, what orders
# them are words in global memory, from all blocks: what is written depends on what was made of that reading. The tool
# knows barriers alone, and of those takes `bar.arrive` for none.
RACECHECK = "racecheck"


@pytest.mark.sanitize("False-1", but=RACECHECK)
@pytest.mark.parametrize("num_layers", [1, 4])
@pytest.mark.parametrize("coded", [False, True])
def test_all_layers_at_once_are_the_layers_one_by_one(device: CudaDevice, num_layers: int, coded: bool) -> None:
    rng = np.random.default_rng(num_layers)
    case = make_case(device, QWEN, num_layers, rng, coded=coded)
    assert 1 in decode_layers_support(device.context, case.model).contexts
    for position in (0, 15, 63, 64, 200, 255, 256, 511, 512, 768, 1100, 2400, -1):
        assert_equal(case, (position,), rng)


@pytest.mark.sanitize("False-*", but=RACECHECK)
@pytest.mark.parametrize("num_sequences", [2, 4, 8])
@pytest.mark.parametrize("coded", [False, True])
def test_so_are_those_of_a_few_sequences(device: CudaDevice, num_sequences: int, coded: bool) -> None:
    rng = np.random.default_rng(num_sequences)
    case = make_case(device, QWEN, 4, rng, coded=coded)
    assert num_sequences in decode_layers_support(device.context, case.model).contexts
    for positions in (
        (0, 2400, -1, 100, 255, 31, 64, 1023),
        (255, 256, 511, 512, 513, 254, 0, 1),
        (-1, 64, 1100, 63, 300, 300, -1, 2047),
        (700, 5, 300, 1500, 2, 800, 17, 128),
        (1500, -1, -1, -1, -1, 40, -1, -1),
        (511, 1100, 0, 257, 1024, 511, 600, 192),
        (63, 63, 63, 63, 63, 63, 63, 63),
    ):
        assert_equal(case, positions[:num_sequences], rng)


def test_logits_are_those_of_the_rows_that_are_asked_for(device: CudaDevice) -> None:
    rng = np.random.default_rng(9)
    case = make_case(device, QWEN, 1, rng)
    for logit_rows in ((3, 0, 2, 1), (1, 1, 1, 1), (2,), (0, 3)):
        assert_equal(case, (100, 5, 300, -1), rng, logit_rows)


def test_a_head_that_the_kernel_does_not_unpack_comes_after_it(device: CudaDevice) -> None:
    rng = np.random.default_rng(10)
    case = make_case(device, replace(QWEN, head="Q5_0"), 1, rng)
    for positions in ((100,), (100, 5), (100, 5, 300, 7)):
        assert_equal(case, positions, rng)


def test_embeddings_and_queries_may_be_of_other_kinds(device: CudaDevice) -> None:
    rng = np.random.default_rng(11)
    case = make_case(device, replace(QWEN, embedding="Q8_0", query_growth=QueryGrowth(0.1, 64)), 1, rng)
    for positions in ((100,), (63, 1000), (64, 5, -1, 700), (1, 63, 64, 65, 128, 300, 5, -1)):
        assert_equal(case, positions, rng)


def test_of_equal_logits_the_lowest_id_is_drawn_and_none_where_they_are_not_finite(device: CudaDevice) -> None:
    rng = np.random.default_rng(12)
    case = make_case(device, QWEN, 1, rng)
    for weight in (0.0, np.nan):
        same = with_last_norm(case, weight)
        for positions in ((100,), (100, 5), (5, -1, 100, 7), (100, 5, 300, 7, 1, 2, 3, 4)):
            assert_equal(same, positions, rng)
            _, ids, *_ = same.run(np.arange(len(positions)), positions, tuple(range(len(positions))), "draws")
            assert ids.tolist() == [0 if weight == 0 else -1] * len(positions)
