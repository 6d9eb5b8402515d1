"""CUDA C++ files -> cubins: NVRTC compiles for one architecture, and what it made is kept on disk.

A file's variants differ by preprocessor definitions. Neither compiling nor the cache needs a GPU.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from kernels.errors import CompileFailed
from kernels.runtime import driver
from kernels.runtime.cuda_constants import declarations
from kernels.runtime.cuda_struct import checks

Variant = tuple[str, Mapping[str, int | str]]
"""A file's path below `SOURCE_DIRECTORY` without its ``.cu``, and the definitions it is compiled with."""

SOURCE_DIRECTORY = Path(__file__).resolve().parents[1] / "cuda"

_OPTIONS = ("-std=c++17", "-lineinfo", "-diag-suppress=177", "--ptxas-options=-v")  # 177: unused constants of headers
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
_PRAGMA_ONCE = re.compile(r"^\s*#\s*pragma\s+once\b")


def architecture(major: int, minor: int) -> str:
    """What to compile for on a device of this compute capability: on Hopper with its wgmma instructions."""
    return "sm_90a" if (major, minor) == (9, 0) else f"sm_{major}{minor}"


def cache_directory() -> Path:
    """Where cubins are kept: ``$XDG_CACHE_HOME/orcd/kernels``, by default ``~/.cache/orcd/kernels``.

    For a user without a home that is ``/``, as in containers.
    """
    try:
        home = Path.home()
    except RuntimeError:  # neither HOME nor a name
        home = Path("/")
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "orcd" / "kernels"


def read_source(path: Path) -> str:
    """The file with every ``#include "..."`` replaced by what it names, each once, and line numbers kept.

    In front of a file of `SOURCE_DIRECTORY` stand the constants that Python declares for it.
    """
    return "\n".join(_inline(path, set())) + "\n"


def _inline(path: Path, seen: set[Path]) -> list[str]:
    path = path.resolve()
    seen.add(path)
    is_ours = path.is_relative_to(SOURCE_DIRECTORY)
    constants = declarations(path.relative_to(SOURCE_DIRECTORY).as_posix()) if is_ours else []
    lines = [f'#line 1 "{path.name}: declared in Python"', *constants, f'#line 1 "{path.name}"']
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if "#" not in line:  # as most
            lines.append(line)
        elif include := _INCLUDE.match(line):
            included = (path.parent / include[1]).resolve()
            if included not in seen:
                lines += _inline(included, seen)
            lines.append(f'#line {number + 1} "{path.name}"')
        else:
            lines.append("" if _PRAGMA_ONCE.match(line) else line)
    return lines


class Cubin(msgspec.Struct, frozen=True):
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
        self._texts: dict[str, str] = {}  # of files as they are compiled

    def text(self, source: str) -> str:
        """``source``.cu as it is compiled."""
        text = self._texts.get(source)
        if text is None:  # two threads may read it, which does no harm
            text = self._texts[source] = read_source(self._sources / f"{source}.cu") + checks(source)
        return text

    def cubin(self, source: str, defines: Mapping[str, int | str]) -> Cubin:
        """The variant of ``source``.cu; raises `CompileFailed`. May be called from several threads at once."""
        text = self.text(source)
        options = (
            *_OPTIONS,
            f"-arch={self.arch}",
            *(f"-D{name}={value}" for name, value in sorted(defines.items())),
        )
        kept = self._cache / f"{_digest(text, options)}.cubin"
        cubin = _read(kept)
        if cubin is None:
            cubin = _compile(source, text, options)
            _write(kept, cubin)
        return cubin


def _digest(text: str, options: tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join((text, driver.nvrtc_version(), *options)).encode()).hexdigest()


def _compile(source: str, text: str, options: tuple[str, ...]) -> Cubin:
    try:
        return Cubin(*driver.compile_source(f"{source}.cu", text, options))
    except CompileFailed as error:
        raise CompileFailed(f"{source}.cu ({' '.join(options[len(_OPTIONS) :])}): {error}") from None


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
