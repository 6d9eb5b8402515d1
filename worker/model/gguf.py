"""GGUF files, memory-mapped and checked byte by byte before anything in them is believed.

Why not ``gguf.GGUFReader``: on a vocabulary file of 151,936 tokens and as many merges it takes 11 s and 530 MB (this
reader: 0.2 s and 60 MB), and it trusts counts, offsets and dimensions. The library stays the tests' oracle, and names
types that we cannot run.

Layout (ggml/docs/gguf.md): magic, version, tensor count, key count; key-value pairs; tensor infos; padding to
``general.alignment``; tensor data. All little-endian. A model may be split over files named ``-00001-of-0000N``.
"""

from __future__ import annotations

import math
import mmap
import re
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kernels.weights.formats import BY_GGML_TYPE, Format
from orcd.errors import ModelLoadFailed
from worker.model.hub import local_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERSIONS = (2, 3)  # one layout; 1 had 32-bit counts and is extinct
MAX_KEY_BYTES = 65_535  # the specification's limits
MAX_TENSOR_NAME_BYTES = 64
MAX_DIMENSIONS = 4
MAX_ARRAY_LENGTH = 1 << 21  # ten times the largest vocabulary's merges
MAX_ALIGNMENT = 1 << 20

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MIN_PAIR_BYTES = 8 + 1 + 4 + 1
_MIN_INFO_BYTES = 8 + 1 + 4 + 8 + 4 + 8
_READ_EXACTLY = ("tokenizer.ggml.", "tokenizer.chat_template")  # other strings are compared or shown: U+FFFD does
_SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class Tensor(msgspec.Struct, frozen=True, eq=False):
    """One tensor, still in its blocks.

    ``shape`` is row-major as NumPy has it: a weight is (outputs, inputs), experts are (experts, outputs, inputs).
    ``content`` is ``num_bytes`` of the mapped file, from ``offset`` on.
    """

    name: str
    format: Format
    shape: tuple[int, ...]
    offset: int
    num_bytes: int
    content: memoryview

    @property
    def data(self) -> NDArray[np.uint8]:
        """A read-only view of the content: uint8 [..., row_bytes]."""
        import numpy as np  # whoever reads only metadata, as the Celery process does, goes without

        return np.frombuffer(self.content, np.uint8).reshape(*self.shape[:-1], self.format.row_bytes(self.shape[-1]))


class GGUFFile(msgspec.Struct, frozen=True, eq=False):
    """A model file (all parts of a split one): metadata as Python values and tensors by name."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def open_gguf(reference: str | Path) -> GGUFFile:
    """Map a file and read its header; a split model is given by its first part.

    ``reference`` is a path, or a file on the Hugging Face Hub, which is downloaded first (`worker.model.hub`).
    Raises `ModelLoadFailed` naming the file and what is wrong with it. Reads no tensor data.
    """
    path = local_path(reference)
    metadata, tensors = _read_part(path)
    num_parts = metadata.get("split.count", 1)
    if not isinstance(num_parts, int) or not 0 <= num_parts <= 99_999:
        raise ModelLoadFailed(f"{path}: split.count must be a number of files")
    if num_parts > 1:
        _join_parts(path, metadata, tensors, num_parts)
    return GGUFFile(path, metadata, tensors)


def _join_parts(path: Path, metadata: dict[str, Any], tensors: dict[str, Tensor], num_parts: int) -> None:
    name = _SPLIT_NAME.fullmatch(path.name)
    if name is None or int(name["count"]) != num_parts:
        raise ModelLoadFailed(f"{path}: is part of a model split in {num_parts}, not named -00001-of-{num_parts:05}")
    if metadata.get("split.no") != 0 or int(name["number"]) != 1:
        raise ModelLoadFailed(f"{path}: is not the first part of a split model; give the one named -00001-of-")
    for number in range(2, num_parts + 1):
        part = path.with_name(f"{name['stem']}-{number:05}-of-{num_parts:05}.gguf")
        part_metadata, part_tensors = _read_part(part)
        if part_metadata.get("split.no") != number - 1 or part_metadata.get("split.count") != num_parts:
            raise ModelLoadFailed(f"{part}: split.no and split.count do not say part {number} of {num_parts}")
        if twice := tensors.keys() & part_tensors.keys():
            raise ModelLoadFailed(f"{part}: tensor {min(twice)} is in an earlier part too")
        tensors.update(part_tensors)
    expected = metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise ModelLoadFailed(f"{path}: split.tensors.count is {expected}, but the parts hold {len(tensors)} tensors")


def _read_part(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
            raise ModelLoadFailed(f"{path}: is not a file")
        if status.st_size < 4:
            raise ModelLoadFailed(f"{path}: is not a GGUF file (only {status.st_size} bytes)")
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the path is malformed"
        raise ModelLoadFailed(f"{path}: cannot be opened ({reason})") from None
    try:
        return _Reader(mapped).read()
    except _MalformedError as error:
        raise ModelLoadFailed(f"{path}: {error}") from None


class _MalformedError(Exception):
    """What is wrong with the file, as the end of a sentence that starts with its path."""


class _TensorInfo(msgspec.Struct, frozen=True):
    name: str
    format: Format
    shape: tuple[int, ...]
    offset: int  # from the start of the data section
    num_bytes: int


class _Reader:
    """A cursor over the mapped file. Every read checks that its bytes exist before it allocates anything."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._mapping, self._bytes, self._position = mapped, memoryview(mapped), 0
        self._errors = "strict"  # what becomes of bytes that are not UTF-8

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if bytes(self._take(4, "the magic")) != b"GGUF":
            raise _MalformedError("is not a GGUF file (its first bytes are not GGUF)")
        version = self._number("<I", "the version")
        if version not in VERSIONS:
            hint = " (a big-endian file?)" if version & 0xFFFF == 0 else ""
            raise _MalformedError(f"has GGUF version {version}{hint}; versions 2 and 3 can be read")
        num_tensors = self._count(_MIN_INFO_BYTES, "tensor")
        num_pairs = self._count(_MIN_PAIR_BYTES, "metadata key")
        metadata: dict[str, Any] = {}
        for _ in range(num_pairs):
            key = self._string("a metadata key", MAX_KEY_BYTES)
            if key in metadata:
                raise _MalformedError(f"has the metadata key {_shown(key)} twice")
            self._errors = "strict" if key.startswith(_READ_EXACTLY) else "replace"
            metadata[key] = self._value(f"metadata key {_shown(key)}")
        infos = [self._tensor_info() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise _MalformedError(f"general.alignment is {alignment!r}; it must be a power of two")
        return metadata, self._tensors(infos, alignment)

    def _take(self, num_bytes: int, what: str) -> memoryview:
        end = self._position + num_bytes
        if end > len(self._bytes):
            raise _MalformedError(
                f"is truncated or damaged: {what} needs {num_bytes} bytes at {self._position}, "
                f"and the file ends at {len(self._bytes)}"
            )
        taken = self._bytes[self._position : end]
        self._position = end
        return taken

    def _number(self, code: str, what: str) -> Any:
        return struct.unpack(code, self._take(struct.calcsize(code), what))[0]

    def _count(self, least_bytes: int, what: str) -> int:
        count: int = self._number("<Q", f"the {what} count")
        if count * least_bytes > len(self._bytes) - self._position:
            raise _MalformedError(f"is truncated or damaged: the {what} count is {count}, more than the file can hold")
        return count

    def _string(self, what: str, max_bytes: int | None = None) -> str:
        length = self._number("<Q", f"the length of {what}")
        if max_bytes is not None and length > max_bytes:
            raise _MalformedError(f"is damaged: {what} has a length of {length} bytes (at most {max_bytes})")
        try:
            return str(self._take(length, what), "utf-8", "strict" if max_bytes else self._errors)
        except UnicodeDecodeError:
            raise _MalformedError(f"is damaged: {what} is not valid UTF-8") from None

    def _value(self, what: str) -> Any:
        kind = self._number("<I", f"the type of {what}")
        if kind == _STRING:
            return self._string(what)
        if kind == _ARRAY:
            return self._array(what)
        if kind not in _SCALARS:
            raise _MalformedError(f"is damaged: {what} has the unknown type {kind}")
        return self._number(_SCALARS[kind], what)

    def _array(self, what: str) -> list[Any]:
        kind = self._number("<I", f"the element type of {what}")
        if kind not in _SCALARS and kind != _STRING:
            raise _MalformedError(f"{what} is an array of the unsupported type {kind}")
        least_bytes = 8 if kind == _STRING else struct.calcsize(_SCALARS[kind])
        length = self._count(least_bytes, f"{what} element")
        if length > MAX_ARRAY_LENGTH:
            raise _MalformedError(f"{what} has {length} elements; at most {MAX_ARRAY_LENGTH} are read")
        if kind == _STRING:
            return self._strings(length, what)
        return list(struct.unpack(f"<{length}{_SCALARS[kind][1]}", self._take(length * least_bytes, what)))

    def _strings(self, length: int, what: str) -> list[str]:
        """The loop of `_string` written out, without memoryviews: vocabularies have hundreds of thousands."""
        data, position, size = self._mapping, self._position, len(self._bytes)
        unpack, errors = struct.Struct("<Q").unpack_from, self._errors
        strings: list[str] = []
        try:
            for _ in range(length):
                start = position + 8
                position = start + unpack(data, position)[0]
                if position > size:
                    raise _MalformedError(f"is truncated or damaged: {what} runs past the end of the file")
                strings.append(data[start:position].decode("utf-8", errors))
        except struct.error:
            raise _MalformedError(f"is truncated or damaged: {what} runs past the end of the file") from None
        except UnicodeDecodeError:
            raise _MalformedError(f"is damaged: element {len(strings)} of {what} is not valid UTF-8") from None
        self._position = position
        return strings

    def _tensor_info(self) -> _TensorInfo:
        name = self._string("a tensor's name", MAX_TENSOR_NAME_BYTES)
        what = f"tensor {name!r}"
        num_dimensions = self._number("<I", f"the rank of {what}")
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise _MalformedError(f"is damaged: {what} has {num_dimensions} dimensions (1 to {MAX_DIMENSIONS})")
        dimensions = [self._number("<Q", f"the shape of {what}") for _ in range(num_dimensions)]
        format_ = _format(self._number("<I", f"the type of {what}"), what)
        offset = self._number("<Q", f"the offset of {what}")
        num_elements, block = math.prod(dimensions), format_.block_elements
        if not 0 < num_elements <= len(self._bytes) * block:
            raise _MalformedError(f"is damaged: {what} of shape {dimensions} cannot fit in the file")
        if dimensions[0] % block:
            rows = f"rows of {what} have {dimensions[0]} elements"
            raise _MalformedError(f"is damaged: {rows}, no multiple of {format_.name}'s {block}")
        num_bytes = num_elements // block * format_.block_bytes
        return _TensorInfo(name, format_, tuple(reversed(dimensions)), offset, num_bytes)

    def _tensors(self, infos: list[_TensorInfo], alignment: int) -> dict[str, Tensor]:
        data_start = -(-self._position // alignment) * alignment
        tensors: dict[str, Tensor] = {}
        previous_end, previous_name = 0, ""
        for info in sorted(infos, key=lambda info: info.offset):
            what = f"tensor {info.name!r}"
            if info.name in tensors:
                raise _MalformedError(f"is damaged: {what} is listed twice")
            if info.offset % alignment:
                raise _MalformedError(f"is damaged: {what} has offset {info.offset}, no multiple of {alignment}")
            if info.offset < previous_end:
                raise _MalformedError(f"is damaged: {what} overlaps {previous_name!r}")
            start = data_start + info.offset
            if start + info.num_bytes > len(self._bytes):
                raise _MalformedError(
                    f"is truncated or damaged: {what} ends at byte {start + info.num_bytes}, "
                    f"and the file at {len(self._bytes)}"
                )
            previous_end, previous_name = info.offset + info.num_bytes, info.name
            content = self._bytes[start : start + info.num_bytes]
            tensors[info.name] = Tensor(info.name, info.format, info.shape, start, info.num_bytes, content)
        return {info.name: tensors[info.name] for info in infos}


def _shown(key: str) -> str:
    """A key for an error message; a damaged one may be of any length."""
    return repr(key if len(key) <= 64 else f"{key[:64]}...")


def _format(ggml_type: int, what: str) -> Format:
    """The format of a ggml type, be it one that we can run or not; its sizes are needed to check the file."""
    if ggml_type in BY_GGML_TYPE:
        return BY_GGML_TYPE[ggml_type]
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType  # slow to import and seldom needed

    try:
        known = GGMLQuantizationType(ggml_type)
    except ValueError:
        raise _MalformedError(f"{what} has the unknown tensor type {ggml_type}") from None
    return Format(known.name, ggml_type, *GGML_QUANT_SIZES[known])
