"""The modules that hold the CUDA ops, all their kernels, and their ops on one context."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

from kernels.ops import (
    activation,
    attention,
    attention_plan,
    decode_step,
    embedding,
    matmul,
    moe,
    norm,
    rope,
    sampling,
)
from kernels.runtime.compiler import Variant
from kernels.runtime.launcher import Context
from kernels.weights import repack

MODULES: tuple[ModuleType, ...] = (
    activation,
    attention,
    attention_plan,
    decode_step,
    embedding,
    matmul,
    moe,
    norm,
    repack,
    rope,
    sampling,
)


def variants() -> list[Variant]:
    """Every variant that the ops can launch, each once.

    A module that launches other modules' kernels has none of its own.
    """
    seen: dict[tuple[object, ...], Variant] = {}
    for module in MODULES:
        for source, defines in module.variants() if hasattr(module, "variants") else ():
            seen[source, *sorted(defines.items())] = (source, defines)
    return list(seen.values())


def common_variants() -> list[Variant]:
    """Those that depend on no model."""
    return [(source, defines) for source, defines in variants() if not defines]


def bind(context: Context) -> SimpleNamespace:
    """The ops by name, as `kernels.reference` has them.

    They are every function of the modules whose first parameter is the ``context``, which is given here.
    """
    ops = SimpleNamespace()
    for module in MODULES:
        for name, function in inspect.getmembers(module, inspect.isfunction):
            public = function.__module__ == module.__name__ and not name.startswith("_")
            if public and next(iter(inspect.signature(function).parameters), None) == "context":
                setattr(ops, name, _released(context, function))
    return ops


def _released(context: Context, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` on ``context``.

    What it took of the scratch memory is free again when it returns nothing: later kernels run after its own, so they
    may use the same memory.
    """

    def op(*arguments: Any, **options: Any) -> Any:
        mark = context.mark()
        result = function(context, *arguments, **options)
        if result is None:
            context.release(mark)
        return result

    return op
