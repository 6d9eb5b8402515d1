"""kernels.weights.weight_store without memory: where weights go, how much they take, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest

from kernels.devices.dry_run import DryRunDevice
from kernels.errors import UnsupportedWeight
from kernels.runtime.memory import padded
from kernels.weights import repack
from kernels.weights.formats import FORMATS
from kernels.weights.packed import NUM_ARRIVALS, packed_bytes
from kernels.weights.parameters import SharedWeights, Weight
from kernels.weights.weight_store import PackedWeightStore

Made = TypeVar("Made")


def weight(name: str, *shape: int, format_: str, bias: bool = False) -> Weight:
    """A weight of zeros with ``shape`` outputs (of experts) and inputs."""
    data = np.zeros((*shape[:-1], FORMATS[format_].row_bytes(shape[-1])), np.uint8)
    return Weight(name, FORMATS[format_], data, np.zeros(shape[:-1], np.float32) if bias else None)


def lay_out(make: Callable[[PackedWeightStore], Made]) -> tuple[Made, int]:
    """What ``make(store)`` gives, and the bytes of device memory that it takes."""
    device = DryRunDevice("cuda:0")
    before = device.weights.used_bytes
    made = make(device.store)
    assert device.weights.used_bytes == device.weights.high_water_bytes
    return made, device.weights.used_bytes - before


def test_neighbours_of_one_format_are_one_matrix_with_zeros_for_missing_biases() -> None:
    weights = [
        weight("q.weight", 100, 96, format_="Q5_0", bias=True),
        weight("k.weight", 20, 96, format_="Q5_0"),
        weight("v.weight", 20, 96, format_="Q5_1"),
    ]
    projection, num_bytes = lay_out(lambda store: store.projection(weights))
    first, second = projection.matrices
    assert [(matrix.num_rows, matrix.width, matrix.gated) for matrix in projection.matrices] == [
        (120, 96, False),
        (20, 96, False),
    ]
    assert first.bias.shape == (120,) and second.bias is None and projection.num_outputs == 140
    sizes = [packed_bytes(FORMATS["Q5_0"], 120, 96), 120 * 4, packed_bytes(FORMATS["Q5_1"], 20, 96)]
    assert num_bytes == sum(map(padded, sizes))


def test_formats_that_fit_one_without_loss_become_one_matrix_of_it() -> None:
    weights = [weight("q.weight", 100, 96, format_="Q5_0"), weight("v.weight", 20, 96, format_="Q8_0")]
    projection, num_bytes = lay_out(lambda store: store.projection(weights))
    assert [(matrix.format.name, matrix.num_rows) for matrix in projection.matrices] == [("Q8_0", 120)]
    assert num_bytes == padded(packed_bytes(FORMATS["Q8_0"], 120, 96))


@pytest.mark.parametrize(
    ("num_gated", "formats", "gated"),
    [(72, ["Q4_K", "Q4_K"], True), (72, ["Q4_K"], True), (72, ["Q4_K", "Q6_K"], False), (76, ["Q4_K", "Q4_K"], False)],
    ids=["two", "fused", "of two formats", "not in eights"],
)
def test_gate_and_up_are_one_gated_matrix_if_they_can_be(num_gated: int, formats: list[str], gated: bool) -> None:
    num_rows = 2 * num_gated // len(formats)
    weights = [weight(f"{number}.weight", num_rows, 256, format_=name) for number, name in enumerate(formats)]
    projection, num_bytes = lay_out(lambda store: store.gate_up(weights))
    assert [matrix.gated for matrix in projection.matrices] == ([True] if gated else [False] * len(set(formats)))
    assert projection.num_outputs == 2 * num_gated
    sizes = [packed_bytes(matrix.format, matrix.num_rows, 256) for matrix in projection.matrices]
    assert num_bytes == sum(map(padded, sizes))


def test_experts_lie_one_after_the_other_with_the_largest_exponent_of_each_row() -> None:
    gate, up = (weight(f"{name}.weight", 5, 40, 64, format_="MXFP4", bias=True) for name in ("gate", "up"))
    down = weight("down.weight", 5, 64, 32, format_="Q8_0")
    experts, num_bytes = lay_out(lambda store: store.experts(gate, up, down))
    gate_up_bytes, down_bytes = packed_bytes(FORMATS["MXFP4"], 80, 64), packed_bytes(FORMATS["Q8_0"], 64, 32)
    [gate_up] = experts.gate_up
    assert gate_up.gated and gate_up.packed.shape == (5, gate_up_bytes)
    assert gate_up.base.shape == (5, 80) and gate_up.bias.size == 5 * 80
    assert not experts.down.gated and experts.down.packed.shape == (5, down_bytes) and experts.down.base is None
    assert num_bytes == sum(map(padded, [5 * gate_up_bytes, 5 * 80 * 4, 5 * 80 * 4, 5 * down_bytes]))


def test_a_table_is_packed_as_a_projection_is_and_a_router_is_float32() -> None:
    table, num_bytes = lay_out(lambda store: store.table(weight("token_embd.weight", 30, 256, format_="Q6_K")))
    assert (table.num_rows, table.width, table.gated, table.bias) == (30, 256, False, None)
    assert num_bytes == padded(packed_bytes(FORMATS["Q6_K"], 30, 256))
    router, num_bytes = lay_out(lambda store: store.router(weight("r.weight", 9, 64, format_="BF16"), 3))
    assert (router.weight.shape, router.bias.shape, router.num_used) == ((9, 64), (9,), 3)
    assert router.arrivals.shape == (NUM_ARRIVALS,)
    assert num_bytes == padded(9 * 64 * 4) + padded(9 * 4) + padded(NUM_ARRIVALS * 4)


def test_the_matrix_of_a_tied_head_is_the_embedding_table_too() -> None:
    device = DryRunDevice("cuda:0")
    before = device.weights.used_bytes
    table, head = device.store.tied_head(weight("token_embd.weight", 300, 64, format_="Q8_0"))
    assert table is head.matrices[0]
    assert device.weights.used_bytes - before == padded(packed_bytes(FORMATS["Q8_0"], 300, 64))
    ids, out = device.empty((7,), np.int32), device.empty((7, 64), np.float32)
    device.ops.embed(ids, table, out=out)
    assert device.context.last_enqueued == "unpack_rows"


@pytest.mark.parametrize("make", [lambda s, w: s.projection([w]), lambda s, w: s.gate_up([w]), PackedWeightStore.table])
def test_rows_that_cannot_be_read_16_bytes_at_a_time_are_refused_by_name(make: Callable[..., object]) -> None:
    odd = weight("blk.0.attn_q.weight", 64, 40, format_="F16")
    with pytest.raises(UnsupportedWeight, match=r"tensor 'blk.0.attn_q.weight' has rows of 40; .* multiple of 32"):
        lay_out(lambda store: make(store, odd))


def test_a_router_of_more_experts_than_a_warp_has_lanes_is_refused_by_name() -> None:
    router = weight("blk.1.ffn_gate_inp.weight", 64, 64, format_="F32")
    lay_out(lambda store: store.router(router, 32))
    with pytest.raises(UnsupportedWeight, match=r"ffn_gate_inp.weight. chooses 33 experts a token; .* 32"):
        lay_out(lambda store: store.router(router, 33))


def test_a_router_that_does_not_renormalise_is_refused_by_name() -> None:
    router = weight("blk.1.ffn_gate_inp.weight", 64, 64, format_="F32")
    with pytest.raises(UnsupportedWeight, match=r"ffn_gate_inp.weight. weighs the chosen .* --device cpu"):
        lay_out(lambda store: store.router(router, 4, renormalises=False))


def test_a_shared_expert_lies_beside_the_others() -> None:
    experts = weight("experts", 2, 64, 64, format_="Q8_0")
    single = weight("blk.1.ffn_gate_shexp.weight", 64, 64, format_="Q8_0")
    shared = SharedWeights(single, single, single, np.ones(64, np.float32))
    made, _ = lay_out(lambda store: store.experts(experts, experts, experts, shared))
    assert made.shared is not None and made.shared.output_gate.shape == (64,)
    assert [matrix.gated for matrix in made.shared.gate_up.matrices] == [True]
    assert [matrix.num_rows for matrix in made.shared.down.matrices] == [64]


@pytest.mark.parametrize(("up_format", "inner"), [("Q4_0", 64), ("Q8_0", 36)], ids=["formats", "outputs"])
def test_experts_whose_gate_and_up_cannot_be_one_matrix_have_one_each(up_format: str, inner: int) -> None:
    gate = weight("blk.1.ffn_gate_exps.weight", 4, inner, 64, format_="Q8_0")
    up = weight("blk.1.ffn_up_exps.weight", 4, inner, 64, format_=up_format)
    down = weight("blk.1.ffn_down_exps.weight", 4, 64, 64, format_="Q8_0")
    experts, _ = lay_out(lambda store: store.experts(gate, up, down))
    matrices = [(matrix.format.name, matrix.num_rows, matrix.num_experts, matrix.gated) for matrix in experts.gate_up]
    assert matrices == [("Q8_0", inner, 4, False), (up_format, inner, 4, False)]


def test_slices_of_all_lengths_are_repacked_by_few_kinds_of_launches() -> None:
    grids = {num_blocks: repack._grid(num_blocks) for num_blocks in range(20_000)}
    assert grids[0] == 0, "nothing is launched"
    assert all(num_blocks <= grid <= num_blocks * 9 / 8 for num_blocks, grid in grids.items())
    assert len(set(grids.values())) < 120
