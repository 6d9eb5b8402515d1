"""The plan of a GPU's memory, without a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

import kernels.ops.matmul
from kernels.batch import PrefixGroups
from kernels.devices.dry_run import DryRunDevice
from kernels.dry_step import dry_step
from kernels.errors import OutOfDeviceMemory
from kernels.ops.attention_parts.prefix_attention import MAX_GROUPS
from kernels.ops.matmul_params import Product
from kernels.ops.unpacked import unpacked_matmul
from kernels.ops.unpacked.unpacked_matmul import UnpackedShape
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import H100
from kernels.runtime.launcher import Context
from kernels.runtime.memory import PAGE_BYTES
from kernels.weights.formats import FORMATS
from kernels.weights.repack import variant_for
from kernels.weights.upload import STAGING_BYTES
from tests.models.files import SMALL
from tests.worker.model.tiny import write_tiny
from tests.worker.planned_gpu import PlannedGpu
from worker import memory_plan as vram
from worker.commands.logits import run_dry
from worker.memory_plan import plan_memory, reserve, reserve_for
from worker.model.gguf import GGUFFile, open_gguf
from worker.model.registry import assemble_model, read_model_config
from worker.model.weights import Weights
from worker.settings import Settings

SETTINGS = Settings(model="tiny.gguf", max_sequences=8, step_tokens=256, context_length=2048)


@pytest.fixture
def without_staging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scratch memory as steps need it: tiny models need less than their load."""
    monkeypatch.setattr(vram, "STAGING_BYTES", 0)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    return open_gguf(write_tiny("gpt-oss", tmp_path_factory.mktemp("model") / "tiny.gguf"))


def total_without_cache(gguf: GGUFFile) -> int:
    return msgspec.structs.replace(plan_memory(gguf, PlannedGpu(0), SETTINGS).memory, kv_cache=0).total_bytes


def test_every_use_of_memory_is_in_the_plan(gguf: GGUFFile) -> None:
    plan = plan_memory(gguf, DryRunDevice("cuda:0"), SETTINGS)
    assert {name for name, num_bytes in plan.memory.lines() if not num_bytes} == {"weight copies"}, "without a budget"
    weights = sum(tensor.num_bytes for tensor in gguf.tensors.values())
    assert weights < plan.memory.weights < 2 * weights + 2**21  # some padding, and scales of 8 bits for those of 6
    assert plan.available_bytes is None
    assert plan.fits is None


def test_the_cache_gets_what_the_budget_leaves_in_whole_blocks(gguf: GGUFFile) -> None:
    budget = total_without_cache(gguf) + 3 * PAGE_BYTES
    plan = plan_memory(gguf, PlannedGpu(budget), SETTINGS)
    assert plan.fits
    assert plan.memory.total_bytes == budget
    assert 0 <= 3 * PAGE_BYTES - plan.memory.kv_cache < plan.block_bytes
    assert plan.cache_tokens == plan.num_blocks * SETTINGS.kv_block_tokens


def test_the_cache_is_no_larger_than_the_longest_sequences_can_fill(gguf: GGUFFile) -> None:
    plan = plan_memory(gguf, PlannedGpu(1 << 40), SETTINGS)
    assert plan.cache_tokens == SETTINGS.max_sequences * 2048


def test_states_of_recurrent_layers_lie_beside_the_blocks_of_the_cache() -> None:
    gguf, settings = open_gguf(SMALL["qwen35-q4_k_m"]), replace(SETTINGS, state_cache_bytes=100_000)
    plan = plan_memory(gguf, PlannedGpu(1 << 40), settings)
    assert plan.num_states == 8 + 100_000 // plan.state_bytes
    device = DryRunDevice("cuda:0")
    model = assemble_model(read_model_config(gguf), Weights(gguf, device), device)
    model.allocate_cache(plan.num_blocks, settings.kv_block_tokens, plan.num_states)
    arrays_bytes = plan.num_blocks * plan.block_bytes + plan.states_bytes
    assert arrays_bytes <= device.kv_cache.high_water_bytes <= plan.memory.kv_cache < arrays_bytes + 2**16
    many = replace(settings, max_sequences=200)
    budget = (
        msgspec.structs.replace(plan_memory(gguf, PlannedGpu(0), many).memory, kv_cache=0).total_bytes + 2 * PAGE_BYTES
    )
    narrow = plan_memory(gguf, PlannedGpu(budget), many)
    assert narrow.fits and narrow.num_states == 200 + 100_000 // plan.state_bytes
    assert 2 * PAGE_BYTES - narrow.memory.kv_cache < 2 * narrow.block_bytes


def test_masks_of_the_vocabulary_are_in_the_plan_for_every_sequence(gguf: GGUFFile) -> None:
    vocab_size = read_model_config(gguf).vocab_size
    few, many = (
        plan_memory(gguf, PlannedGpu(0), replace(SETTINGS, max_sequences=count)).memory.step_buffers
        for count in (8, 248)
    )
    assert many - few > 240 * vocab_size / 8


@pytest.mark.usefixtures("without_staging")
def test_larger_steps_need_more_scratch_and_more_sequences_more_buffers(gguf: GGUFFile) -> None:
    small, long, many = (
        plan_memory(gguf, PlannedGpu(0), replace(SETTINGS, **change)).memory
        for change in ({}, {"step_tokens": 1024}, {"max_sequences": 64})
    )
    assert small.scratch < long.scratch
    assert small.step_buffers < many.step_buffers
    assert small.weights == long.weights == many.weights


def test_scratch_memory_is_enough_to_load_through(gguf: GGUFFile) -> None:
    assert plan_memory(gguf, PlannedGpu(0), replace(SETTINGS, step_tokens=8)).memory.scratch == STAGING_BYTES
    planned = PlannedGpu(1 << 40)
    reserve_for(gguf, planned, lambda model: run_dry(model, {5}))
    assert planned.allocated[0].scratch == STAGING_BYTES


@pytest.mark.usefixtures("without_staging")
def test_no_step_needs_more_scratch_than_was_planned_for_the_largest(tmp_path: Path) -> None:
    gguf = open_gguf(write_tiny("qwen2", tmp_path / "tiny.gguf"))
    settings = replace(SETTINGS, step_tokens=1100)
    device = DryRunDevice("cuda:0", replace(H100, num_sms=8))  # so few that 1024 tokens of it are still split
    planned_bytes = plan_memory(gguf, device, settings).memory.scratch
    model = assemble_model(read_model_config(gguf), Weights(gguf, device), device)
    cache = model.allocate_cache(1, settings.kv_block_tokens)
    for num_tokens in range(1, settings.step_tokens + 1):
        for num_sequences in {1, min(num_tokens, settings.max_sequences)}:
            step = dry_step(num_tokens, num_sequences, num_sequences, 128)
            model.forward(step, cache)
            if num_sequences > 1:
                ints = [DeviceArray(0, shape, np.dtype(np.int32)) for shape in ((MAX_GROUPS, 3), (num_sequences,))]
                model.forward(msgspec.structs.replace(step, prefixes=PrefixGroups(*ints)), cache)
            assert device.context.high_water_bytes <= planned_bytes, num_tokens
    model.forward(msgspec.structs.replace(dry_step(1, 1, 1, 128), has_long_context=True), cache)
    assert device.context.high_water_bytes <= planned_bytes


@pytest.mark.usefixtures("without_staging")
def test_scratch_is_planned_for_each_number_of_logits_beside_the_most_tokens(
    gguf: GGUFFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def multiply(context: Context, product: Product, size: int) -> None:
        context.scratch((1 << 28,), np.uint8)  # what the matrix is unpacked to

    def shape(_gpu: object, _matrix: object, num_tokens: int) -> UnpackedShape:  # that is faster for some numbers only
        return UnpackedShape(128, 0.0 if num_tokens <= 64 else 1e9)

    monkeypatch.setattr(unpacked_matmul, "is_suitable", lambda _gpu, product: product.out.dtype == np.float32)
    monkeypatch.setattr(kernels.ops.matmul, "unpacked_shape", shape)
    monkeypatch.setattr(kernels.ops.matmul, "multiply_unpacked", multiply)
    settings = replace(SETTINGS, step_tokens=512, max_sequences=100)
    device = DryRunDevice("cuda:0")
    planned_bytes = plan_memory(gguf, device, settings).memory.scratch
    model = assemble_model(read_model_config(gguf), Weights(gguf, device), device)
    model.forward(dry_step(512, 40, 40, 128), model.allocate_cache(1, settings.kv_block_tokens))
    assert device.context.high_water_bytes <= planned_bytes


def test_kernels_that_load_run_and_serve_a_model_are_prepared_before(gguf: GGUFFile) -> None:
    gpu = PlannedGpu(1 << 40)
    reserve(gguf, gpu, SETTINGS)
    formats = {tensor.format.name for tensor in gguf.tensors.values() if len(tensor.shape) > 1}
    repacked = {str(variant_for(FORMATS[name], FORMATS[name])) for name in formats} & gpu.prepared
    assert len(repacked) >= len(formats - {"F32"})
    sources = {text.split("'")[1] for text in gpu.prepared}
    stems = {source.rpartition("/")[2] for source in sources}
    assert stems >= {
        "repack",
        "matmul",
        "matmul_tiled",
        "moe",
        "norm",
        "attention",
        "rope",
        "sampling_draw",
        "decode_step",
    }


def test_what_is_reserved_is_what_the_engine_is_told(gguf: GGUFFile) -> None:
    gpu = PlannedGpu(total_without_cache(gguf) + 8 * PAGE_BYTES)
    settings = reserve(gguf, gpu, SETTINGS)
    (memory,) = gpu.allocated
    plan = plan_memory(gguf, gpu, SETTINGS)
    assert memory == plan.memory
    assert settings == replace(SETTINGS, kv_cache_bytes=plan.num_blocks * plan.block_bytes)
    assert reserve(gguf, gpu, settings) == settings


def test_a_cache_size_that_is_set_is_kept_or_refused(gguf: GGUFFile) -> None:
    gpu = PlannedGpu(total_without_cache(gguf) + 8 * PAGE_BYTES)
    wanted = 2 * PAGE_BYTES
    assert plan_memory(gguf, gpu, replace(SETTINGS, kv_cache_bytes=wanted)).memory.kv_cache <= wanted + PAGE_BYTES
    with pytest.raises(OutOfDeviceMemory):
        reserve(gguf, gpu, replace(SETTINGS, kv_cache_bytes=20 * PAGE_BYTES))


@pytest.mark.usefixtures("without_staging")
def test_logits_need_no_more_than_their_longest_prompt(gguf: GGUFFile) -> None:
    gpu = PlannedGpu(1 << 40)
    for lengths in ({5}, {5, 100}, {5, 100, 600}):
        reserve_for(gguf, gpu, lambda model, lengths=lengths: run_dry(model, lengths))  # type: ignore[misc]
    caches = [plan.kv_cache for plan in gpu.allocated]
    assert caches == sorted(set(caches))
    assert len({plan.weights for plan in gpu.allocated}) == 1
    assert gpu.allocated[0].scratch < gpu.allocated[2].scratch
