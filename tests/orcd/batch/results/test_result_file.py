from __future__ import annotations

import io
import json
import os
import re
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from orcd.batch.place import Place
from orcd.batch.results.orcd_results import OrcdResults
from orcd.batch.results.result_file import ErrorFile, ErrorStream, ResultFile, ResultStream, is_stream
from orcd.errors import InvalidRequest

LINE = b'{"line":3,"id":null,"job_id":"batch-1-3-00000000000f","text":"x"}\n'


def test_results_are_read_back_and_a_torn_one_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(LINE + LINE[:20])
    file = ResultFile(path)
    assert list(file.read(OrcdResults())) == [(Place(0, 3), 15)]
    file.write({"line": 4})
    file.sync()
    file.close()
    assert path.read_bytes() == LINE + b'{"line":4}\n'


def test_one_at_a_time_writes_a_file(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "out.jsonl")
    with pytest.raises(InvalidRequest, match="another batch is writing this file"):
        ResultFile(tmp_path / "out.jsonl")
    file.close()
    ResultFile(tmp_path / "out.jsonl").close()


@pytest.mark.parametrize("text", [b"notes\n", b'{"line":1,"job_id":"x"}\n', LINE + b"notes"])
def test_what_is_no_result_file_is_left_as_it_is(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(text)
    file = ResultFile(path)
    with pytest.raises(InvalidRequest, match=r"line \d is not a result of orcd batch in this format"):
        list(file.read(OrcdResults()))
    file.close()
    assert path.read_bytes() == text


def test_an_error_file_starts_anew_and_an_empty_one_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "errors.jsonl"
    path.write_text("of the run before\n")
    file = ErrorFile(path)
    file.write({"line": 1})
    assert json.loads(path.read_text()) == {"line": 1}, "it can be read at any time"
    file.close()
    ErrorFile(path).close()
    assert not path.exists()


def test_a_stream_is_written_line_by_line_and_never_removed(tmp_path: Path) -> None:
    target = io.BytesIO()
    stream = ResultStream(target)
    stream.write({"line": 1})
    assert target.getvalue() == b'{"line":1}\n'
    stream.close()
    assert not target.closed
    os.mkfifo(tmp_path / "pipe")
    assert is_stream("-") and is_stream("/dev/null") and is_stream(str(tmp_path / "pipe"))
    assert not is_stream(str(tmp_path)) and not is_stream(str(tmp_path / "new"))


def test_failures_on_standard_error_do_not_break_into_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm(total=9, file=sys.stderr) as bar:
        stream = ErrorStream()
        stream.write({"line": 1})
        bar.update(9)
        stream.sync()
        stream.close()
    assert re.search(r"[\r\n] *\r?\{\"line\":1\}\n", capsys.readouterr().err)
