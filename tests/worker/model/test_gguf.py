"""worker.model.gguf: what it reads is what the gguf library wrote; what is damaged is refused by name."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from orcd.errors import ModelLoadFailed
from tests.models.files import KIT, SMALL
from worker.model.gguf import open_gguf

VALUES: dict[str, tuple[gguf.GGUFValueType, Any]] = {
    "a.u8": (gguf.GGUFValueType.UINT8, 255),
    "a.i8": (gguf.GGUFValueType.INT8, -128),
    "a.u16": (gguf.GGUFValueType.UINT16, 65535),
    "a.i16": (gguf.GGUFValueType.INT16, -32768),
    "a.u32": (gguf.GGUFValueType.UINT32, 2**32 - 1),
    "a.i32": (gguf.GGUFValueType.INT32, -(2**31)),
    "a.u64": (gguf.GGUFValueType.UINT64, 2**64 - 1),
    "a.i64": (gguf.GGUFValueType.INT64, -(2**63)),
    "a.f32": (gguf.GGUFValueType.FLOAT32, 0.5),
    "a.f64": (gguf.GGUFValueType.FLOAT64, 0.1),
    "a.yes": (gguf.GGUFValueType.BOOL, True),
    "a.no": (gguf.GGUFValueType.BOOL, False),
    "a.text": (gguf.GGUFValueType.STRING, "grüße 🌊 \0 end"),
    "a.empty": (gguf.GGUFValueType.STRING, ""),
}


def write(path: Path, *, split: tuple[int, int] | None = None, tensors: dict[str, np.ndarray] | None = None) -> Path:
    writer = gguf.GGUFWriter(path, "test")
    for key, (kind, value) in VALUES.items():
        writer.add_key_value(key, value, kind)
    writer.add_array("a.texts", ["x", "", "日本"])
    writer.add_array("a.numbers", [1, 2, -3])
    writer.add_array("a.floats", [0.5, -1.25])
    if split:
        writer.add_uint16("split.no", split[0])
        writer.add_uint16("split.count", split[1])
    for name, values in (tensors if tensors is not None else TENSORS).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


TENSORS = {
    "vector": np.arange(5, dtype=np.float32),
    "matrix": np.arange(12, dtype=np.float16).reshape(3, 4),
    "experts": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "model.gguf")


def test_every_kind_of_metadata_comes_back_as_a_python_value(path: Path) -> None:
    metadata = open_gguf(path).metadata
    for key, (_, value) in VALUES.items():
        assert metadata[key] == value and type(metadata[key]) is type(value), key
    assert metadata["a.texts"] == ["x", "", "日本"]
    assert metadata["a.numbers"] == [1, 2, -3]
    assert metadata["a.floats"] == [0.5, -1.25]
    assert metadata["general.architecture"] == "test"


def test_tensors_are_views_of_the_file_in_row_major_shape(path: Path) -> None:
    tensors = open_gguf(path).tensors
    for name, values in TENSORS.items():
        tensor = tensors[name]
        assert tensor.shape == values.shape and tensor.num_bytes == values.nbytes
        np.testing.assert_array_equal(tensor.data.view(values.dtype), values)
        assert path.read_bytes()[tensor.offset :].startswith(values.tobytes())
        with pytest.raises(ValueError, match="read-only"):
            tensor.data[...] = 0


@pytest.mark.parametrize("path", [*SMALL.values(), *KIT.values()], ids=lambda path: path.stem)
def test_a_model_reads_as_the_gguf_library_reads_it(path: Path) -> None:
    ours, library = open_gguf(path), gguf.GGUFReader(path)
    theirs = {key: field.contents() for key, field in library.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == theirs
    assert list(ours.tensors) == [tensor.name for tensor in library.tensors]
    for tensor in library.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.shape == tuple(reversed(tensor.shape.tolist()))
        assert (mine.format.ggml_type, mine.offset) == (tensor.tensor_type.value, tensor.data_offset)
        assert mine.data.tobytes() == tensor.data.tobytes()


def test_a_split_model_is_read_through_its_first_part(tmp_path: Path) -> None:
    names = list(TENSORS)
    for number, name in enumerate(names):
        part = tmp_path / f"m-{number + 1:05}-of-00003.gguf"
        write(part, split=(number, 3), tensors={name: TENSORS[name]})
    assert list(open_gguf(tmp_path / "m-00001-of-00003.gguf").tensors) == names
    with pytest.raises(ModelLoadFailed, match="not the first part"):
        open_gguf(tmp_path / "m-00002-of-00003.gguf")
    (tmp_path / "m-00003-of-00003.gguf").unlink()
    with pytest.raises(ModelLoadFailed, match=r"m-00003-of-00003.gguf: cannot be opened \(No such file"):
        open_gguf(tmp_path / "m-00001-of-00003.gguf")
    write(tmp_path / "m-00003-of-00003.gguf", split=(1, 3), tensors={names[2]: TENSORS[names[2]]})
    with pytest.raises(ModelLoadFailed, match="do not say part 3 of 3"):
        open_gguf(tmp_path / "m-00001-of-00003.gguf")
    write(tmp_path / "m-00003-of-00003.gguf", split=(2, 3), tensors={names[0]: TENSORS[names[0]]})
    with pytest.raises(ModelLoadFailed, match="vector is in an earlier part"):
        open_gguf(tmp_path / "m-00001-of-00003.gguf")
    (tmp_path / "m-00001-of-00003.gguf").rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelLoadFailed, match="not named -00001-of-00003"):
        open_gguf(tmp_path / "renamed.gguf")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("once upon a time")
    for name, problem in (
        ("pipe", "is not a file"),
        (".", "is not a file"),
        ("absent", "No such file"),
        ("empty", "only 0 bytes"),
        ("text", "is not a GGUF file"),
        ("nul\0", "malformed"),
    ):
        with pytest.raises(ModelLoadFailed, match=problem):
            open_gguf(tmp_path / name)


def test_every_truncation_is_refused(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    for size in {*range(200), *range(200, len(whole) - 32, 37)}:
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(whole[:size])
        with pytest.raises(ModelLoadFailed):
            open_gguf(cut)


def header(*pairs: bytes, num_tensors: int = 0, infos: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, len(pairs)) + b"".join(pairs) + infos + bytes(64)


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def info(name: bytes, dims: list[int], ggml_type: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, ggml_type, offset)


MODEL, TOKENS = b"tokenizer.ggml.model", b"tokenizer.ggml.tokens"
KEY = string(b"k") + struct.pack("<I", 4) + struct.pack("<I", 7)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (header(KEY, KEY), "key 'k' twice"),
        (header(version=0x03000000), "big-endian"),
        (header(version=1), "version 1"),
        (header(string(b"\xff") + struct.pack("<II", 4, 7)), "not valid UTF-8"),
        (header(string(MODEL) + struct.pack("<I", 8) + string(b"\xff\xfe")), "ggml.model' is not valid UTF-8"),
        (header(string(b"k") + struct.pack("<I", 13)), "unknown type 13"),
        (header(string(b"k") + struct.pack("<IIQ", 9, 9, 0)), "array of the unsupported type 9"),
        (header(string(b"k") + struct.pack("<IIQ", 9, 0, 2**61)), "more than the file can hold"),
        (header(string(b"k") + struct.pack("<IIQ", 9, 8, 2) + string(b"a") + struct.pack("<Q", 2**63)), "past the end"),
        (header(string(TOKENS) + struct.pack("<IIQ", 9, 8, 1) + string(b"\xff")), "element 0 of .* not valid UTF-8"),
        (header(num_tensors=1, infos=info(b"t" * 65, [4])), "length of 65"),
        (header(num_tensors=1, infos=info(b"t", [])), "0 dimensions"),
        (header(num_tensors=1, infos=info(b"t", [1] * 5)), "5 dimensions"),
        (header(num_tensors=1, infos=info(b"t", [0])), "cannot fit"),
        (header(num_tensors=1, infos=info(b"t", [2**33, 2**33])), "cannot fit"),
        (header(num_tensors=1, infos=info(b"t", [33], 2)), "no multiple of Q4_0's 32"),
        (header(num_tensors=1, infos=info(b"t", [4], 4)), "unknown tensor type 4"),
        (header(num_tensors=1, infos=info(b"t", [4], 99)), "unknown tensor type 99"),
        (header(num_tensors=1, infos=info(b"t", [4], offset=1)), "no multiple of 32"),
        (header(num_tensors=1, infos=info(b"t", [4], offset=2**40)), "ends at byte"),
        (header(num_tensors=2, infos=info(b"t", [4]) * 2), "listed twice"),
        (header(num_tensors=2, infos=info(b"t", [4]) + info(b"u", [4])), "'u' overlaps 't'"),
    ],
)
def test_damage_is_named(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelLoadFailed, match=problem) as caught:
        open_gguf(path)
    assert str(path) in caught.value.message


def test_strings_that_nobody_needs_may_hold_any_bytes(tmp_path: Path) -> None:
    path = tmp_path / "latin.gguf"
    text = string(b"general.author") + struct.pack("<I", 8) + string(b"Andr\xe9")
    texts = string(b"general.tags") + struct.pack("<IIQ", 9, 8, 2) + string(b"\xff") + string("é".encode())
    path.write_bytes(header(text, texts))
    assert open_gguf(path).metadata == {"general.author": "Andr\ufffd", "general.tags": ["\ufffd", "é"]}


@pytest.mark.parametrize("alignment", [0, 3, 48, 2**21, "32"])
def test_a_wrong_alignment_is_refused(tmp_path: Path, alignment: object) -> None:
    kind, value = (8, string(b"32")) if isinstance(alignment, str) else (4, struct.pack("<I", alignment))
    path = tmp_path / "bad.gguf"
    path.write_bytes(header(string(b"general.alignment") + struct.pack("<I", kind) + value))
    with pytest.raises(ModelLoadFailed, match=r"general.alignment is .* power of two"):
        open_gguf(path)


def test_a_type_that_we_cannot_run_is_read_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / "iq.gguf"
    path.write_bytes(header(num_tensors=1, infos=info(b"t", [256], 34)) + bytes(256))
    assert open_gguf(path).tensors["t"].format.name == "TQ1_0"
