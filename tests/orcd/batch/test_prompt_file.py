from __future__ import annotations

import gzip
import io
import os
import threading
from pathlib import Path

import pytest

from orcd.batch import prompt_file
from orcd.batch.formats.defaults import Defaults
from orcd.batch.formats.text_lines import TextLines
from orcd.batch.prompt_file import PromptFile
from orcd.errors import InvalidRequest

FORMAT = TextLines(Defaults())


def records(file: PromptFile) -> list[tuple[int, bytes]]:
    return [(record.number, record.text) for record in file.records(FORMAT)]


def write(path: Path, text: bytes) -> PromptFile:
    path.write_bytes(text)
    return PromptFile(str(path), path.with_name("copy"))


@pytest.mark.parametrize("compress", [False, True])
def test_a_file_is_read_from_its_start_each_time(compress: bool, tmp_path: Path) -> None:
    text = b"\xef\xbb\xbfone\r\n\n\xef\xbb\xbftwo"
    file = write(tmp_path / "in", gzip.compress(text) if compress else text)
    file.copy_pipe()
    for _ in range(2):
        assert records(file) == [(1, b"one"), (3, b"\xef\xbb\xbftwo")]
    file.remove_copy()
    assert os.listdir(tmp_path) == ["in"]  # noqa: PTH208


def test_the_rest_of_a_line_longer_than_any_request_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_file, "MAX_REQUEST_BYTES", 4)
    file = write(tmp_path / "in", b"123456789\n1234\n123456789")
    assert records(file) == [(1, b"123456"), (2, b"1234"), (3, b"123456")]


@pytest.mark.parametrize(
    "text",
    [gzip.compress(b"one\n" * 9999)[:-20], gzip.compress(b"one\n")[:-3], b"\x1f\x8bnot"],
    ids=["cut in its data", "cut in its checksum", "no gzip"],
)
def test_a_gzip_file_that_is_damaged_is_named(text: bytes, tmp_path: Path) -> None:
    file = write(tmp_path / "in.gz", text)
    with pytest.raises(InvalidRequest, match=r"in\.gz: .*the gzip file is damaged"):
        records(file)


def test_a_pipe_is_copied_whole_and_its_copy_removed_at_the_end(tmp_path: Path) -> None:
    pipe, copy = tmp_path / "pipe", tmp_path / "copy"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(gzip.compress(b"one\ntwo\n"),))
    writer.start()
    file = PromptFile(str(pipe), copy)
    file.copy_pipe()
    writer.join()
    assert records(file) == [(1, b"one"), (2, b"two")]
    again = PromptFile(str(file.path), copy)  # as the command is remembered
    again.copy_pipe()
    assert records(again) == records(file)
    again.remove_copy()
    assert os.listdir(tmp_path) == ["pipe"]  # noqa: PTH208


def test_standard_input_is_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "in"
    source.write_bytes(b"one\n")
    with source.open("rb") as opened:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(opened))
        file = PromptFile("-", tmp_path / "copy")
        file.copy_pipe()
    assert file.detect_format(has_template=False) == "text"
    assert records(file) == [(1, b"one")]


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"missing: cannot be read \(No such file or directory\)"):
        PromptFile(str(tmp_path / "missing"), tmp_path / "copy")
    with pytest.raises(InvalidRequest, match=r"cannot be read \(Is a directory\)"):
        PromptFile(str(tmp_path), tmp_path / "copy")
    file = write(tmp_path / "in", b"one\n")
    (tmp_path / "in").unlink()
    with pytest.raises(InvalidRequest, match=r"in: cannot be read \(No such file or directory\)"):
        records(file)
