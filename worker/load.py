"""From settings to a model on its device: what every verb that loads one does, and what can go wrong in it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from kernels.devices.open import open_device
from kernels.devices.protocol import Device, is_gpu
from kernels.errors import CompileFailed, CudaFailure, DeviceUnavailable, OutOfDeviceMemory
from orcd.errors import CudaError, InsufficientVram, ModelLoadFailed
from worker.engine.engine import Engine
from worker.model.gguf import GGUFFile
from worker.model.registry import load_model
from worker.model.weights import Progress
from worker.settings import Settings


def open_configured_device(settings: Settings) -> Device:
    """The device of ``settings`` with its budget; raises `ModelLoadFailed` in one line that says what to do."""
    try:
        return open_device(
            settings.device,
            dequant_cache_bytes=settings.dequant_cache_bytes,
            vram_fraction=settings.vram_fraction,
            vram_bytes=settings.vram_bytes,
            cache_type=settings.kv_cache_type,
        )
    except DeviceUnavailable as error:
        raise ModelLoadFailed(str(error)) from None


YOUNG_OBJECTS = 50_000
"""Objects more than there were, with which the garbage collector looks through these: 20 ms. With Python's 700 it did
so for 8 ms of 400 while 13 of 256 answers found out what their schema allows."""


def load_engine(gguf: GGUFFile, device: Device, settings: Settings, progress: Progress) -> Engine:
    """The engine over the model in ``gguf``; raises `ModelLoadFailed`, `InsufficientVram`, and `CudaError`.

    On a CUDA device all memory is planned and allocated first. ``progress(num_bytes, total_bytes)`` is called as
    weights are read. All that Python has by now stays: the garbage collector, which would look through it for 40 ms
    between two steps, leaves it alone from then on. It begins now if it was off, and looks only where much is new: what
    steps make is gone without it, and what grammars learn stays.
    """
    with device_errors(settings):
        if is_gpu(device):
            from worker.memory_plan import reserve  # not at the top: the CPU device needs nothing of CUDA's

            settings = reserve(gguf, device, settings)
        engine = Engine(load_model(gguf, device, progress), settings)
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
    gc.enable()
    return engine


@contextmanager
def device_errors(settings: Settings) -> Iterator[None]:
    """Exceptions of the device as errors with a code: `InsufficientVram`, `CudaError`, `ModelLoadFailed`."""
    try:
        yield
    except OutOfDeviceMemory as error:
        raise insufficient_vram(settings, error.required_bytes, error.available_bytes) from error
    except MemoryError as error:  # of the CPU device
        raise InsufficientVram(
            f"{settings.model} needs more memory than there is on {settings.device}; lower kv_cache_bytes, "
            "max_sequences or step_tokens"
        ) from error
    except CudaFailure as error:
        raise CudaError(str(error)) from error
    except CompileFailed as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ModelLoadFailed(f"{settings.device}: a kernel does not compile: {first_line}") from error


def insufficient_vram(settings: Settings, required_bytes: int, available_bytes: int) -> InsufficientVram:
    """The error that says what is needed, what there is, and which settings might help."""
    return InsufficientVram(
        f"{settings.model} needs {required_bytes} bytes on {settings.device}, and {available_bytes} are available; "
        "lower max_sequences, step_tokens or kv_cache_bytes, raise vram_fraction or vram_bytes, or free the device"
    )
