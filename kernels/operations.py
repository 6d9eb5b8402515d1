"""Which modules hold the CUDA ops, and what all of them have to say."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

from kernels.launch import Context
from kernels.loader import Variant

MODULES = (
    "activation",
    "attention",
    "embedding",
    "matmul",
    "moe",
    "norm",
    "repack",
    "rope",
    "sampling",
    "step",
)


def modules() -> list[ModuleType]:
    """The op modules, imported."""
    return [importlib.import_module(f"kernels.{name}") for name in MODULES]


def variants() -> list[Variant]:
    """Every variant that the ops can ask the loader for, each once. A module that launches other modules' kernels has
    none of its own."""
    seen: dict[tuple[object, ...], Variant] = {}
    for module in modules():
        for stem, defines in module.variants() if hasattr(module, "variants") else ():
            seen[stem, *sorted(defines.items())] = (stem, defines)
    return list(seen.values())


def common_variants() -> list[Variant]:
    """Those that depend on no model."""
    return [(stem, defines) for stem, defines in variants() if not defines]


def bind(context: Context) -> SimpleNamespace:
    """The ops by name, as `kernels.reference` has them: every function of the modules whose first parameter is the
    ``context``, which is given here."""
    ops = SimpleNamespace()
    for module in modules():
        for name, function in inspect.getmembers(module, inspect.isfunction):
            public = function.__module__ == module.__name__ and not name.startswith("_")
            if public and next(iter(inspect.signature(function).parameters), None) == "context":
                setattr(ops, name, _released(context, function))
    return ops


def _released(context: Context, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` on ``context``. What it took of the scratch memory is free again when it returns nothing: later
    kernels run after its own, so they may use the same memory."""

    def op(*arguments: Any, **options: Any) -> Any:
        mark = context.mark()
        result = function(context, *arguments, **options)
        if result is None:
            context.release(mark)
        return result

    return op
