"""CUDA C++ files -> cubins -> functions: NVRTC compiles for one architecture, and what it made is kept on disk.

A file's variants differ by preprocessor definitions. Neither compiling nor the cache needs a GPU.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.errors import CompileFailed, CudaFailure

Variant = tuple[str, Mapping[str, int | str]]
"""A file of `SOURCE_DIRECTORY` without its ``.cu``, and the definitions it is compiled with."""

SOURCE_DIRECTORY = Path(__file__).parent / "cuda"
STATIC_SHARED_BYTES = 48 * 1024  # a kernel that wants more dynamic shared memory must say so first

_OPTIONS = ("-std=c++17", "-lineinfo", "-diag-suppress=177", "--ptxas-options=-v")  # 177: unused constants of headers
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
_PRAGMA_ONCE = re.compile(r"^\s*#\s*pragma\s+once\b")


def architecture(major: int, minor: int) -> str:
    """What to compile for on a device of this compute capability: on Hopper with its wgmma instructions."""
    return "sm_90a" if (major, minor) == (9, 0) else f"sm_{major}{minor}"


def cache_directory() -> Path:
    """Where cubins are kept: ``$XDG_CACHE_HOME/orcd/kernels``, by default ``~/.cache/orcd/kernels``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orcd" / "kernels"


def read_source(path: Path) -> str:
    """The file with every ``#include "..."`` replaced by what it names, each once, and line numbers kept."""
    return "\n".join(_inline(path, set())) + "\n"


def _inline(path: Path, seen: set[Path]) -> list[str]:
    seen.add(path.resolve())
    lines = [f'#line 1 "{path.name}"']
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if include := _INCLUDE.match(line):
            included = path.parent / include[1]
            if included.resolve() not in seen:
                lines += _inline(included, seen)
            lines.append(f'#line {number + 1} "{path.name}"')
        else:
            lines.append("" if _PRAGMA_ONCE.match(line) else line)
    return lines


@dataclass(frozen=True, slots=True)
class Cubin:
    """A compiled file: the image for the driver, and the compiler's log (registers, shared memory and spills)."""

    image: bytes
    log: str


class Compiler:
    """Compiles for one architecture, once: what is in the cache is taken from there."""

    def __init__(
        self,
        arch: str,
        *,
        cache: Path | None = None,  # None: `cache_directory`
        sources: Path = SOURCE_DIRECTORY,
    ) -> None:
        self.arch = arch
        self._cache = cache_directory() if cache is None else cache
        self._sources = sources

    def cubin(self, stem: str, defines: Mapping[str, int | str]) -> Cubin:
        """The variant of ``stem``.cu; raises `CompileFailed`. May be called from several threads at once."""
        source = read_source(self._sources / f"{stem}.cu")
        options = (
            *_OPTIONS,
            f"-arch={self.arch}",
            *(f"-D{name}={value}" for name, value in sorted(defines.items())),
        )
        kept = self._cache / f"{_digest(source, options)}.cubin"
        cubin = _read(kept)
        if cubin is None:
            cubin = _compile(stem, source, options)
            _write(kept, cubin)
        return cubin


def _digest(source: str, options: tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join((source, _nvrtc_version(), *options)).encode()).hexdigest()


def _nvrtc_version() -> str:
    from cuda.bindings import nvrtc

    _, major, minor = nvrtc.nvrtcVersion()
    return f"nvrtc {major}.{minor}"


def _compile(stem: str, source: str, options: tuple[str, ...]) -> Cubin:
    from cuda.bindings import nvrtc

    done, program = nvrtc.nvrtcCreateProgram(source.encode(), f"{stem}.cu".encode(), 0, [], [])
    if done != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileFailed(f"{stem}.cu: {done.name}")
    try:
        (done,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        _, log_bytes = nvrtc.nvrtcGetProgramLogSize(program)
        log = bytearray(log_bytes)
        nvrtc.nvrtcGetProgramLog(program, log)
        text = log.decode(errors="replace").rstrip("\0\n")
        if done != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileFailed(f"{stem}.cu ({' '.join(options[len(_OPTIONS) :])}): {done.name}\n{text}")
        _, image_bytes = nvrtc.nvrtcGetCUBINSize(program)
        image = bytearray(image_bytes)
        nvrtc.nvrtcGetCUBIN(program, image)
        return Cubin(bytes(image), text)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


# A file of the cache: the digest of what follows, the log's length, the log, the image.
_DIGEST_BYTES = 32
_LENGTH_BYTES = 8


def _read(path: Path) -> Cubin | None:
    """What was kept, or None if there is nothing or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        return None
    end = _LENGTH_BYTES + int.from_bytes(payload[:_LENGTH_BYTES], "little")
    return Cubin(payload[end:], payload[_LENGTH_BYTES:end].decode())


def _write(path: Path, cubin: Cubin) -> None:
    """Keep it if that is possible: the cache saves time, nothing depends on it."""
    log = cubin.log.encode()
    payload = len(log).to_bytes(_LENGTH_BYTES, "little") + log + cubin.image
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    except OSError:
        return
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(hashlib.sha256(payload).digest() + payload)
        Path(temporary).replace(path)  # whole or not at all, whoever else writes it
    except OSError:
        Path(temporary).unlink(missing_ok=True)


@dataclass(slots=True)
class Function:
    """A kernel in the current CUDA context."""

    name: str
    handle: Any  # CUfunction
    static_shared_bytes: int
    max_threads: int  # of a block
    params_bytes: int | None  # size of its one parameter; None if the driver is too old to tell
    dynamic_shared_bytes: int = STATIC_SHARED_BYTES  # allowed so far

    def allow_shared(self, num_bytes: int) -> None:
        """Make launches with ``num_bytes`` of dynamic shared memory possible."""
        from cuda.bindings import driver

        if num_bytes > self.dynamic_shared_bytes:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _check(self.name, driver.cuFuncSetAttribute(self.handle, attribute, num_bytes))
            self.dynamic_shared_bytes = num_bytes


class Loader:
    """Modules and functions of one CUDA context, which must be current."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._modules: dict[tuple[Any, ...], Any] = {}
        self._functions: dict[tuple[Any, ...], Function] = {}

    def prepare(self, variants: Iterable[Variant]) -> None:
        """Compile what is missing, on all cores (NVRTC works outside the interpreter lock), and load it."""
        variants = list(variants)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            cubins = list(pool.map(lambda variant: self._compiler.cubin(*variant), variants))
        for (stem, defines), cubin in zip(variants, cubins, strict=True):
            key = _key(stem, defines)
            if key not in self._modules:
                self._modules[key] = _load_module(stem, cubin)

    def function(self, stem: str, kernel: str, defines: Mapping[str, int | str]) -> Function:
        """``kernel`` of ``stem``.cu, compiled and loaded if it is not yet."""
        key = _key(stem, defines)
        function = self._functions.get((kernel, key))
        if function is None:
            module = self._modules.get(key)
            if module is None:
                module = self._modules[key] = _load_module(stem, self._compiler.cubin(stem, defines))
            function = self._functions[kernel, key] = _get_function(module, kernel)
        return function


def _key(stem: str, defines: Mapping[str, int | str]) -> tuple[Any, ...]:
    return stem, *sorted(defines.items())


def _load_module(stem: str, cubin: Cubin) -> Any:
    from cuda.bindings import driver

    return _check(f"{stem}.cu", driver.cuModuleLoadData(cubin.image))


def _get_function(module: Any, kernel: str) -> Function:
    from cuda.bindings import driver

    handle = _check(kernel, driver.cuModuleGetFunction(module, kernel.encode()))
    attribute = driver.CUfunction_attribute
    shared, threads = (
        _check(kernel, driver.cuFuncGetAttribute(which, handle))
        for which in (
            attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
            attribute.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK,
        )
    )
    done, *where = driver.cuFuncGetParamInfo(handle, 0)
    params_bytes = where[1] if done == driver.CUresult.CUDA_SUCCESS else None
    return Function(kernel, handle, shared, threads, params_bytes)


def _check(what: str, result: tuple[Any, ...]) -> Any:
    """The value of a driver call (error, value); raises `CudaFailure` naming ``what``."""
    error, *values = result
    if error.value:
        raise CudaFailure(what, error.name)
    return values[0] if values else None
