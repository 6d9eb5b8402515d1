"""Cubins -> functions: what is loaded in a CUDA context, each module and each kernel once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import msgspec

from kernels.runtime import driver
from kernels.runtime.compiler import Compiler, Variant
from kernels.runtime.driver import FunctionHandle, ModuleHandle

STATIC_SHARED_BYTES = 48 * 1024  # a kernel that wants more dynamic shared memory must say so first

_Key = tuple[str, tuple[tuple[str, int | str], ...]]


class Function(msgspec.Struct):
    """A kernel in the current CUDA context."""

    name: str
    handle: FunctionHandle
    static_shared_bytes: int
    max_threads: int  # of a block
    params_bytes: int | None  # size of its one parameter; None if the driver is too old to tell
    dynamic_shared_bytes: int = STATIC_SHARED_BYTES  # allowed so far

    def allow_shared(self, num_bytes: int) -> None:
        """Make launches with ``num_bytes`` of dynamic shared memory possible."""
        if num_bytes > self.dynamic_shared_bytes:
            driver.allow_shared(self.name, self.handle, num_bytes)
            self.dynamic_shared_bytes = num_bytes


class ModuleCache:
    """Modules and functions of one CUDA context, which must be current."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._modules: dict[_Key, ModuleHandle] = {}
        self._functions: dict[tuple[str, _Key], Function] = {}

    def prepare(self, variants: Iterable[Variant]) -> None:
        """Compile what is missing, on all cores (NVRTC works outside the interpreter lock), and load it meanwhile."""
        variants, cubins = list(variants), []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for source, defines in variants:
                self._compiler.text(source)  # Python's own work: dozens of threads at it took eight times as long
                cubins.append(pool.submit(self._compiler.cubin, source, defines))
            for (source, defines), cubin in zip(variants, cubins, strict=True):
                key, image = _key(source, defines), cubin.result().image
                if key not in self._modules:
                    self._modules[key] = driver.load_module(f"{source}.cu", image)

    def function(self, source: str, kernel: str, defines: Mapping[str, int | str]) -> Function:
        """``kernel`` of ``source``.cu, compiled and loaded if it is not yet."""
        key = _key(source, defines)
        function = self._functions.get((kernel, key))
        if function is None:
            module = self._modules.get(key)
            if module is None:
                module = self._modules[key] = driver.load_module(
                    f"{source}.cu", self._compiler.cubin(source, defines).image
                )
            function = self._functions[kernel, key] = _get_function(module, kernel)
        return function


def _key(source: str, defines: Mapping[str, int | str]) -> _Key:
    return source, tuple(sorted(defines.items()))


def _get_function(module: ModuleHandle, kernel: str) -> Function:
    handle = driver.get_function(module, kernel)
    return Function(kernel, handle, *driver.function_limits(kernel, handle))
