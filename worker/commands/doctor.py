"""``python -m worker doctor``: whether a worker could run here, as lines of JSON for ``orcd doctor``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from kernels.devices.protocol import is_gpu
from kernels.runtime.compiler import cache_directory
from orcd.errors import ModelLoadFailed, OrcdError
from worker.commands.inspect import inspect_model
from worker.load import open_configured_device
from worker.settings import Settings

CACHE_BYTES = 1 << 30
"""Compiled kernels of some models and GPUs."""


class Check(msgspec.Struct, frozen=True):
    """As `orcd.monitoring.check.Check`."""

    name: str
    outcome: Literal["good", "warning", "problem"]
    found: str
    advice: str = ""


def checks(settings: Settings) -> Iterator[Check]:
    """What a worker with these settings needs of this machine."""
    yield _device(settings)
    if settings.device != "cpu":
        yield _kernel_cache(cache_directory())
    yield _model(settings)


def _device(settings: Settings) -> Check:
    try:
        device = open_configured_device(settings)
    except ModelLoadFailed as error:
        return Check("device", "problem", error.message, "or give --device cpu, which is slow")
    if is_gpu(device):
        free = "" if device.budget_bytes is None else f", {device.budget_bytes >> 20} MiB for orcd"
        return Check("device", "good", f"{device.name}: {device.description}{free}")
    return Check("device", "good", f"cpu, {os.cpu_count()} cores")


def _kernel_cache(folder: Path) -> Check:
    """Where compiled kernels are kept. Without it they are compiled at each start."""
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        return Check(
            "kernel cache", "warning", f"{folder} cannot be written", "set XDG_CACHE_HOME to a folder that can"
        )
    free = shutil.disk_usage(parent).free
    if free < CACHE_BYTES:
        return Check("kernel cache", "warning", f"{free >> 20} MiB are free for {folder}", "free some disk space")
    return Check("kernel cache", "good", str(folder))


def _model(settings: Settings) -> Check:
    if not settings.model:
        return Check("model", "warning", "none was given", "give --model M.gguf or set ORCD_MODEL to check it")
    try:
        report = inspect_model(Path(settings.model), settings, settings.tokenizer)
    except OrcdError as error:
        return Check("model", "problem", error.message, "give another GGUF file")
    if not report.supported:
        return Check("model", "problem", f"{settings.model}: {'; '.join(report.problems)}", "give another GGUF file")
    plan = report.vram_plan or report.ram_plan
    assert plan is not None, "there is one for every device of a supported model"
    needs = f"{settings.model}: {report.architecture}, needs {plan.total_bytes >> 20} MiB"
    if plan.fits is False:
        available = (plan.available_bytes or 0) >> 20
        return Check("model", "problem", f"{needs}, and {available} MiB are available",
                     "lower ORCD_MAX_SEQUENCES or ORCD_KV_CACHE_BYTES, or give a smaller model")  # fmt: skip
    if report.warnings:
        return Check("model", "warning", f"{needs}; {'; '.join(report.warnings)}", "a newer file may have that right")
    return Check("model", "good", needs)
