"""Constants that Python and kernels share: declared once, in Python, and compiled into the CUDA file that uses them.

A declaration names a file below kernels/cuda. The compiler puts `declarations` in front of that file, so that the
constants are ordinary C++ names there; a file whose declarations were not imported does not compile::

    MAX_PARTITIONS = 20
    declare_constants("matmul/matmul.cuh", MAX_PARTITIONS=MAX_PARTITIONS)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum

_DECLARED: dict[str, list[str]] = {}


def declare_constants(file: str, **values: int) -> None:
    """Integers, as ``constexpr int``."""
    _declare(file, [f"constexpr int {name} = {int(value)};" for name, value in values.items()])


def declare_enum(file: str, name: str, members: Iterable[str]) -> None:
    """An ``enum``, numbered in the order of its members."""
    _declare(file, [f"enum {name} {{ {', '.join(members)} }};"])


def declare_traits(file: str, name: str, rows: Mapping[tuple[int | str, ...], Mapping[str, int | Enum]]) -> None:
    """A table: ``NAME<ARGUMENTS>`` has the constants of the row of these arguments, ``NAME<...>`` of others has none.

    A member of an enumeration is written by its name; `declare_enum` is to have declared it for the same file.
    """
    parameters = ", ".join("int" for _ in next(iter(rows)))
    lines = [f"template <{parameters}> struct {name};"]
    for arguments, row in rows.items():
        constants = "".join(f" {_constant(field, value)};" for field, value in row.items())
        lines.append(f"template <> struct {name}<{', '.join(map(str, arguments))}> {{{constants} }};")
    _declare(file, lines)


def declare_table(file: str, name: str, values: Sequence[int]) -> None:
    """An array ``NAME<>`` in the device's memory, of ``short`` or, if none is negative, ``unsigned short``.

    It is a template, so that kernels that do not use it have none.
    """
    kind = "short" if min(values) < 0 else "unsigned short"
    numbers = ",".join(map(str, values))
    _declare(file, [f"template <int = 0> __device__ constexpr {kind} {name}[{len(values)}] = {{{numbers}}};"])


def declarations(file: str) -> list[str]:
    """The lines of C++ for the front of ``file``."""
    return _DECLARED.get(file, [])


def _declare(file: str, lines: list[str]) -> None:
    _DECLARED.setdefault(file, []).extend(lines)


def _constant(field: str, value: int | Enum) -> str:
    if isinstance(value, Enum):
        return f"static constexpr {type(value).__name__} {field} = {value.name}"
    return f"static constexpr int {field} = {int(value)}"
