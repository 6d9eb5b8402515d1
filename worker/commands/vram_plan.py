"""What a worker on a GPU needs of its memory, with a GPU or without one; and what no GPU can run."""

from __future__ import annotations

import msgspec

from kernels.devices.dry_run import DryRunDevice
from kernels.devices.open import CUDA_CACHE_FORMATS
from kernels.devices.protocol import GpuDevice, is_gpu
from orcd.errors import ModelLoadFailed
from worker.load import open_configured_device
from worker.memory_plan import plan_memory
from worker.model.gguf import GGUFFile
from worker.model.registry import assemble_model, read_model_config
from worker.model.weights import Weights
from worker.settings import Settings


class VramPlan(msgspec.Struct, frozen=True):
    """What a worker would allocate on a device; ``note`` says why nothing is known of what is available there.

    ``states_bytes`` are those of ``state_slots``: what recurrent layers keep of sequences and of known prefixes.
    ``one_kernel_context`` is that of one sequence in ``one_kernel_contexts``: for these and ``one_kernel_obstacle`` see
    `worker.model.registry.Model`.
    """

    device: str
    device_name: str
    weights_bytes: int
    weight_copies_bytes: int
    kv_cache_bytes: int
    kv_cache_tokens: int
    kv_cache_type: str
    states_bytes: int
    state_slots: int
    scratch_bytes: int
    step_buffers_bytes: int
    graphs_bytes: int
    cuda_context_bytes: int
    total_bytes: int
    available_bytes: int | None
    fits: bool | None
    note: str | None
    one_kernel_context: int | None
    one_kernel_obstacle: str | None
    one_kernel_contexts: dict[int, int]


def plan_vram(gguf: GGUFFile, settings: Settings) -> VramPlan:
    """The plan of a worker with ``settings``. Raises `ModelLoadFailed` for a model that cannot run.

    Where there is no such device it is made for a GPU that stands in for it, with ``vram_bytes`` as its budget if that
    is set.
    """
    device, note = _device_of(settings)
    plan = plan_memory(gguf, device, settings)
    sizes = {f"{name.replace(' ', '_')}_bytes": num_bytes for name, num_bytes in plan.memory.lines()}
    sizes["kv_cache_bytes"] -= plan.states_bytes
    return VramPlan(
        device=device.name,
        device_name=device.description,
        kv_cache_tokens=plan.cache_tokens,
        kv_cache_type=device.cache_format.name,
        states_bytes=plan.states_bytes,
        state_slots=plan.num_states,
        total_bytes=plan.memory.total_bytes,
        available_bytes=plan.available_bytes,
        fits=plan.fits,
        note=note,
        one_kernel_context=plan.model.one_kernel_contexts.get(1),
        one_kernel_obstacle=plan.model.one_kernel_obstacle,
        one_kernel_contexts=dict(plan.model.one_kernel_contexts),
        **sizes,
    )


def _device_of(settings: Settings) -> tuple[GpuDevice | DryRunDevice, str | None]:
    """The GPU of ``settings``, or one that stands in for it and why that is needed."""
    try:
        device = open_configured_device(settings)
    except ModelLoadFailed as error:
        stand_in = DryRunDevice(settings.device, cache_format=CUDA_CACHE_FORMATS[settings.kv_cache_type])
        stand_in.budget_bytes = settings.vram_bytes or None
        return stand_in, error.message
    assert is_gpu(device), "the CPU needs no plan"
    return device, None


def refusals(gguf: GGUFFile) -> list[str]:
    """What keeps a GPU from running a model that the CPU runs; empty: nothing."""
    device = DryRunDevice("cuda:0")
    try:
        assemble_model(read_model_config(gguf), Weights(gguf, device), device)
    except ModelLoadFailed as error:
        return [f"not on a GPU: {error.message.removeprefix(f'{gguf.path}: ')}"]
    return []
