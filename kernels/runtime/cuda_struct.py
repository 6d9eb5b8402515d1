"""Structs that Python packs and kernels read: each is declared once, packed from keywords and checked when compiled.

A declaration has the name of the struct in CUDA and its fields, in the same order. Shapes and dtypes of what pointers
lead to stand behind them::

    class GatherParams(CudaStruct, source="moe/moe"):
        normed: Pointer  # [num_tokens, width] float16
        places: Pointer  # [num_tokens, num_used] int32
        out: Pointer  # [num_pairs, width] float16
        width: Int32
        num_used: Int32

    params = GatherParams(normed=normed.pointer, places=places.pointer, out=out.pointer, width=width, num_used=num_used)
    context.launch("moe/moe", "moe_gather", num_tokens, 128, params)

At run time a declaration is a function of its fields. It gives plain `bytes`, padded as C++ pads them; every field must
be given, and mypy, for which it is a class, knows their names and types.
A declaration may be the type of a field of another one, which is then given its bytes. ``GatherParams.layout`` tells
size and offsets. Whoever compiles ``moe/moe.cu`` also compiles `checks`: a size, a name, a place, a type or a number
of fields that differs from the struct in CUDA is a compile error that names it, on any architecture, without a GPU.
The struct must be there in every variant of the file.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, dataclass_transform, get_type_hints

import msgspec

MAX_FIELDS = 15
"""CPython makes a dictionary for a call with more keywords, which takes three times as long: nest structs instead."""


class FieldType(msgspec.Struct, frozen=True):
    """How a field is stored."""

    code: str  # of the module `struct`
    num_bytes: int
    alignment: int
    cuda: str  # its type in CUDA; "*": a pointer to anything; "": not checked


Pointer = Annotated[int, FieldType("Q", 8, 8, "*")]
"""An address on the device; 0 is the null pointer."""
Int32 = Annotated[int, FieldType("i", 4, 4, "int")]
"""Also takes a bool."""
UInt32 = Annotated[int, FieldType("I", 4, 4, "unsigned int")]
Int64 = Annotated[int, FieldType("q", 8, 8, "long long")]
UInt64 = Annotated[int, FieldType("Q", 8, 8, "unsigned long long")]
Float32 = Annotated[float, FieldType("f", 4, 4, "float")]
Float64 = Annotated[float, FieldType("d", 8, 8, "double")]


class Field(msgspec.Struct, frozen=True):
    """A field where C++ puts it."""

    name: str
    type: FieldType
    offset: int


class StructLayout(msgspec.Struct, frozen=True):
    """What a declaration says of a struct in CUDA."""

    name: str
    source: str  # the file that is checked, below kernels/cuda and without its .cu
    fields: tuple[Field, ...]
    num_bytes: int
    alignment: int

    @property
    def format(self) -> str:
        """For `struct.Struct`."""
        codes, end = "<", 0
        for field in self.fields:
            codes += f"{field.offset - end}x{field.type.code}"
            end = field.offset + field.type.num_bytes
        return f"{codes}{self.num_bytes - end}x"


class _Declaration(type):
    """Makes of a declaration the function that packs its fields.

    For mypy it stays a class; at run time a class would make a dictionary of the keywords of every call.
    """

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], *, source: str = "") -> Any:
        if not source:
            return super().__new__(cls, name, bases, namespace)
        module = namespace.get("__module__", "")
        layout = _layout(name, source, _resolved(namespace["__annotations__"], module))
        packer: Any = _packer(layout)
        packer.layout, packer.__module__, packer.__doc__ = layout, module, namespace.get("__doc__")
        CudaStruct.declared.append(packer)
        return packer


@dataclass_transform(kw_only_default=True)
class CudaStruct(bytes, metaclass=_Declaration):
    """A struct of a kernel; a call packs its fields and gives plain `bytes`.

    ``source`` of a declaration is the file that is checked, below kernels/cuda and without its .cu.
    """

    layout: ClassVar[StructLayout]
    declared: ClassVar[list[type[CudaStruct]]] = []


def checks(source: str) -> str:
    """C++ for the end of ``source``.cu that compiles only if its structs are as they are declared."""
    structs = [struct_ for struct_ in CudaStruct.declared if struct_.layout.source == source]
    if not structs:
        return ""
    lines = [_TRAITS]
    for struct_ in sorted(structs, key=lambda struct_: struct_.layout.name):
        lines += [f'#line 1 "{struct_.__module__}.{struct_.__name__}"', *_assertions(struct_.layout)]
    return "\n".join(lines) + "\n"


def _resolved(annotations: dict[str, Any], module: str) -> dict[str, Any]:
    """What the annotations of a declaration stand for, where ``module`` has them as text."""
    declaration = SimpleNamespace(__annotations__=annotations)
    return get_type_hints(declaration, vars(sys.modules[module]) if module else {}, include_extras=True)


def _layout(name: str, source: str, annotations: dict[str, Any]) -> StructLayout:
    assert len(annotations) <= MAX_FIELDS, f"{name} has {len(annotations)} fields, more than {MAX_FIELDS}: nest structs"
    fields, end, alignment = [], 0, 1
    for field, annotation in annotations.items():
        type_ = _field_type(annotation)
        end = _round_up(end, type_.alignment)
        fields.append(Field(field, type_, end))
        end += type_.num_bytes
        alignment = max(alignment, type_.alignment)
    return StructLayout(name, source, tuple(fields), _round_up(end, alignment), alignment)


def _field_type(annotation: Any) -> FieldType:
    if annotation in CudaStruct.declared:
        nested: StructLayout = annotation.layout
        return FieldType(f"{nested.num_bytes}s", nested.num_bytes, nested.alignment, nested.name)
    type_ = annotation.__metadata__[0]
    assert isinstance(type_, FieldType)
    return type_


def _round_up(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _packer(layout: StructLayout) -> Callable[..., bytes]:
    """A function of the fields as keywords: a generated one takes little longer than ``pack`` itself."""
    names = ", ".join(field.name for field in layout.fields)
    pack = struct.Struct(layout.format).pack
    packer: Callable[..., bytes] = eval(f"lambda *, {names}: pack({names})", {"pack": pack})  # noqa: S307 - our own text
    packer.__name__ = packer.__qualname__ = layout.name
    return packer


_TRAITS = """#line 1 "kernels.runtime.cuda_struct"
template <typename A, typename B> constexpr bool IS_SAME = false;
template <typename A> constexpr bool IS_SAME<A, A> = true;
template <typename T> constexpr bool IS_POINTER = false;
template <typename T> constexpr bool IS_POINTER<T*> = true;"""


def _assertions(layout: StructLayout) -> Iterator[str]:
    name = layout.name
    yield _order_check(layout)
    for number, field in enumerate(layout.fields):
        member = f"{name}::{field.name}"
        is_placed = f"misplaced_field_of_{name}<{name}>() != {number}"
        yield f'static_assert({is_placed}, "{member} is declared as field {number}");'
        if field.type.cuda == "*":
            yield f'static_assert(IS_POINTER<decltype({member})>, "{member} is declared a pointer");'
        elif field.type.cuda:
            yield (
                f"static_assert(IS_SAME<decltype({member}), {field.type.cuda}>, "
                f'"{member} is declared {field.type.cuda}");'
            )
    yield f'static_assert(sizeof({name}) == {layout.num_bytes}, "{name} is declared with {layout.num_bytes} bytes");'


def _order_check(layout: StructLayout) -> str:
    """A function that tells which field does not stand at its place, -1 for none.

    Bindings are as many as there are fields, or it is an error. Types, order and size give the offsets, which NVRTC
    before 13.5 has no constant expression for (``offsetof``).
    """
    names = [field.name for field in layout.fields]
    bindings = ", ".join(f"field_{name}" for name in names)
    comparisons = " ".join(
        f"if ((const void*)&field_{name} != (const void*)&params.{name}) return {number};"
        for number, name in enumerate(names)
    )
    return (
        f"template <typename Struct> __device__ constexpr int misplaced_field_of_{layout.name}() "
        f"{{ Struct params{{}}; auto& [{bindings}] = params; {comparisons} return -1; }}"
    )
