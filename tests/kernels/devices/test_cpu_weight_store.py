"""kernels.devices.cpu_weight_store: weights stay where they are, and are looked at once before they are used."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kernels.devices import cpu_weight_store
from kernels.devices.cpu_weight_store import CpuWeightStore
from kernels.reference.matmul import TileBudget, linear
from kernels.weights.formats import FORMATS
from kernels.weights.parameters import SharedWeights, Weight


@pytest.fixture
def store() -> CpuWeightStore:
    return CpuWeightStore(TileBudget(0))


def weight(name: str, *shape: int, bias: bool = False) -> Weight:
    """Float32 numbers, all different."""
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    biases = np.arange(np.prod(shape[:-1]), dtype=np.float32).reshape(shape[:-1]) + 1000
    return Weight(name, FORMATS["F32"], values.view(np.uint8), biases if bias else None)


def broken(name: str, *shape: int, at: int, value: float) -> Weight:
    whole = weight(name, *shape)
    whole.data.view(np.float32).reshape(-1)[at] = value
    return whole


def test_no_weight_is_copied(store: CpuWeightStore) -> None:
    table, output, gate = weight("t", 5, 64), weight("o", 5, 64), weight("g", 3, 5, 64)
    assert np.shares_memory(store.table(table).data, table.data)
    [projected] = store.projection([output])
    assert np.shares_memory(projected.matrix.data, output.data)
    assert all(
        np.shares_memory(expert.gate.matrix.data, gate.data) for expert in store.experts(gate, gate, gate).routed
    )
    tied, [head] = store.tied_head(table)
    assert tied is head.matrix and np.shares_memory(tied.data, table.data)


def test_matrices_on_one_input_stay_apart_with_their_own_biases(store: CpuWeightStore) -> None:
    query, key = weight("q", 4, 8, bias=True), weight("k", 2, 8)
    for make in (store.projection, store.gate_up):
        first, second = make([query, key])
        assert (first.matrix.shape, second.matrix.shape) == ((4, 8), (2, 8))
        assert first.bias is query.bias and second.bias is None


def test_an_expert_is_its_slice_of_every_stacked_tensor(store: CpuWeightStore) -> None:
    gate, up, down = weight("g", 3, 4, 8, bias=True), weight("u", 3, 4, 8), weight("d", 3, 8, 4, bias=True)
    experts = store.experts(gate, up, down).routed
    assert len(experts) == 3
    x, out = np.ones((1, 8), np.float32), np.empty((1, 4), np.float32)
    linear(x, (experts[2].gate,), out=out)
    np.testing.assert_array_equal(out[0], gate.data[2].view(np.float32).sum(1) + gate.bias[2])
    assert experts[1].up.bias is None
    np.testing.assert_array_equal(experts[1].down.bias, down.bias[1])


Progress = list[tuple[int, int]]


def load(store: CpuWeightStore) -> tuple[list[str], Progress]:
    progress: Progress = []
    return store.load(lambda *told: progress.append(told)), progress


def test_loading_reads_every_byte_and_says_how_far_it_is(
    store: CpuWeightStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_weight_store, "CHECKED_BYTES", 1024)
    store.table(weight("token_embd.weight", 10, 64))
    store.projection([weight("q", 3, 64), weight("k", 1, 64)])
    store.gate_up([weight("g", 2, 64)])
    store.experts(*(weight(name, 2, 5, 64) for name in "gud"))
    store.router(weight("r", 2, 64, bias=True), 1)
    total_bytes = (10 + 3 + 1 + 2 + 3 * 10 + 2) * 64 * 4
    bad, progress = load(store)
    assert bad == []
    assert progress[-1] == (total_bytes, total_bytes)
    assert {total for _, total in progress} == {total_bytes}
    assert max(np.diff([0, *(done for done, _ in progress)])) == 1024, "a few rows of a tensor at a time"


def test_rows_longer_than_what_is_read_at_a_time_are_read_too(
    store: CpuWeightStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_weight_store, "CHECKED_BYTES", 100)
    store.table(broken("token_embd.weight", 3, 64, at=2 * 64, value=np.nan))
    assert load(store)[0] == ["token_embd.weight"]


MAKERS: dict[str, Callable[[CpuWeightStore, Weight], object]] = {
    "table": CpuWeightStore.table,
    "projection": lambda store, bad: store.projection([weight("whole", 4, 64), bad]),
    "gate and up": lambda store, bad: store.gate_up([weight("whole", 4, 64), bad]),
    "router": lambda store, bad: store.router(bad, 1),
}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_tensor_with_a_number_that_is_none_is_named_whatever_it_is_for(
    make: Callable[[CpuWeightStore, Weight], object], value: float, store: CpuWeightStore
) -> None:
    make(store, broken("blk.0.bad.weight", 4, 64, at=100, value=value))
    assert load(store)[0] == ["blk.0.bad.weight"]


def test_a_shared_expert_is_beside_the_stacked_ones_and_is_read_to_its_end(store: CpuWeightStore) -> None:
    gate, up, bad = weight("g", 6, 8), weight("u", 6, 8), broken("d", 8, 6, at=47, value=np.nan)
    shared = SharedWeights(gate, up, bad, np.ones(8, np.float32))
    experts = store.experts(weight("gate", 3, 4, 8), weight("up", 3, 4, 8), weight("down", 3, 8, 4), shared)
    assert experts.shared is not None and len(experts.routed) == 3
    assert experts.shared.network.gate.matrix.shape == (6, 8) and experts.shared.output_gate is shared.output_gate
    assert load(store)[0] == ["d"]


def test_of_stacked_experts_the_tensor_is_named_and_read_to_its_end(store: CpuWeightStore) -> None:
    whole = weight("up", 3, 4, 8)
    store.experts(broken("gate", 3, 4, 8, at=95, value=np.nan), whole, broken("down", 3, 8, 4, at=0, value=np.inf))
    assert load(store)[0] == ["gate", "down"]
