"""Float16 copies of matrices in the plan of a GPU's memory."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from kernels.devices.dry_run import DryRunDevice
from kernels.ops.copied.copy_value import copy_value
from kernels.runtime import memory
from kernels.runtime.gpu_spec import A100, GpuSpec
from kernels.weights.half_copy import half_bytes
from kernels.weights.packed import PackedMatrix
from kernels.weights.upload import STAGING_BYTES
from tests.models.files import SMALL
from tests.worker.planned_gpu import PlannedGpu
from worker import memory_plan as vram
from worker.memory_plan import COPIES_SHARE, EngineMemoryPlan, plan_memory, reserve
from worker.model.gguf import GGUFFile, open_gguf
from worker.model.registry import assemble_model, read_model_config
from worker.model.weights import Weights
from worker.settings import Settings

SETTINGS = Settings(model="tiny.gguf", max_sequences=128, step_tokens=256, context_length=2048)
PAGE_BYTES = 1024


@pytest.fixture(scope="module")
def gguf() -> GGUFFile:
    return open_gguf(SMALL["qwen2-q4_k_m"])


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrices of a small model have a few KB."""
    for module in (memory, vram):
        monkeypatch.setattr(module, "PAGE_BYTES", PAGE_BYTES)


@pytest.fixture(autouse=True)
def values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every copy is worth its bytes, wide matrices twice as much."""

    def value(_gpu: GpuSpec, matrix: PackedMatrix) -> float:
        return half_bytes(matrix) * (2.0 if matrix.width > 64 else 1.0)

    monkeypatch.setattr(vram, "copy_value", value)


def plan_with(gguf: GGUFFile, more_bytes: int, settings: Settings = SETTINGS) -> EngineMemoryPlan:
    """With so much beside what has to be there."""
    needed = msgspec.structs.replace(plan_memory(gguf, PlannedGpu(0), settings).memory, kv_cache=0)
    assert not needed.weight_copies
    return plan_memory(gguf, PlannedGpu(needed.total_bytes + more_bytes), settings)


def multiplied(gguf: GGUFFile) -> list[PackedMatrix]:
    device = DryRunDevice("cuda:0")
    assemble_model(read_model_config(gguf), Weights(gguf, device), device)
    return device.store.multiplied


def test_every_matrix_that_gains_by_it_has_a_copy_where_there_is_room_for_all(gguf: GGUFFile) -> None:
    plan = plan_memory(gguf, PlannedGpu(1 << 40), SETTINGS)
    assert len(plan.copied) == 9 and plan.memory.weight_copies > plan.memory.weights / 2
    assert plan.cache_tokens == SETTINGS.max_sequences * plan.model.config.context_length


def test_a_gpu_without_the_kernels_and_a_plan_without_a_budget_have_no_copies(
    gguf: GGUFFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vram, "copy_value", copy_value)
    device = PlannedGpu(1 << 40)
    device.gpu = A100
    for plan in (plan_memory(gguf, device, SETTINGS), plan_memory(gguf, DryRunDevice("cuda:0"), SETTINGS)):
        assert not plan.copied and not plan.memory.weight_copies
        assert not any("unpack" in source for source, _ in plan.variants)


def test_copies_take_a_share_of_what_the_cache_could_use_and_those_that_save_most_come_first(gguf: GGUFFile) -> None:
    whole = plan_memory(gguf, PlannedGpu(1 << 40), SETTINGS).memory
    left = 2 * whole.weight_copies
    assert left < whole.kv_cache
    plan = plan_with(gguf, left)
    assert plan.fits and 0 < plan.memory.weight_copies <= left // COPIES_SHARE
    assert plan.memory.kv_cache >= left - left // COPIES_SHARE - plan.block_bytes - PAGE_BYTES
    widths = [matrix.width for matrix in multiplied(gguf)]
    left_out = set(range(len(widths))) - plan.copied
    assert left_out and max(widths[number] for number in left_out) <= 64


def test_no_copy_makes_the_cache_too_small_for_the_longest_context(gguf: GGUFFile) -> None:
    settings = replace(SETTINGS, max_sequences=8)
    context_bytes = plan_memory(gguf, PlannedGpu(1 << 40), settings).memory.kv_cache // 8
    assert not plan_with(gguf, context_bytes, settings).copied
    plan = plan_with(gguf, 3 * context_bytes, settings)
    assert plan.cache_tokens >= plan.model.config.context_length


def test_beside_a_cache_whose_size_is_set_copies_take_what_remains(gguf: GGUFFile) -> None:
    settings = replace(SETTINGS, kv_cache_bytes=1 << 20)
    wanted = plan_memory(gguf, PlannedGpu(1 << 40), settings).memory
    assert not plan_with(gguf, wanted.kv_cache, settings).copied
    assert plan_with(gguf, wanted.kv_cache + wanted.weight_copies // 2, settings).copied
    plan = plan_with(gguf, wanted.kv_cache + wanted.weight_copies + 2 * PAGE_BYTES, settings)
    assert plan.memory.weight_copies == wanted.weight_copies and plan.fits


def test_where_some_copies_need_more_than_none_there_are_none(gguf: GGUFFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_steps(_model: object, dry: DryRunDevice, _limits: object) -> None:
        has_all = all(matrix.half_copy is not None for matrix in dry.store.multiplied)
        dry.context.scratch((STAGING_BYTES + (0 if has_all else 200_000),), np.uint8)

    monkeypatch.setattr(vram, "_run_largest_steps", run_steps)
    settings = replace(SETTINGS, kv_cache_bytes=1 << 20)
    plan = plan_with(gguf, plan_memory(gguf, PlannedGpu(1 << 40), settings).memory.kv_cache + 100_000, settings)
    assert plan.fits and not plan.copied


def test_the_device_is_told_which_matrices_have_copies(gguf: GGUFFile) -> None:
    gpu = PlannedGpu(1 << 40)
    reserve(gguf, gpu, SETTINGS)
    assert gpu.copied == plan_memory(gguf, gpu, SETTINGS).copied
