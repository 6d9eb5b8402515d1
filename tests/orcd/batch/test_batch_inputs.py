from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from orcd.batch.batch_inputs import BatchInputs
from orcd.batch.batch_options import BatchOptions
from orcd.batch.line_index import LineIndex
from orcd.batch.place import Place
from orcd.errors import InvalidRequest


def inputs(folder: Path, *texts: str, options: BatchOptions | None = None) -> BatchInputs:
    names = []
    for number, text in enumerate(texts, 1):
        (folder / f"{number}.jsonl").write_text(text)
        names.append(str(folder / f"{number}.jsonl"))
    opened = BatchInputs(names, folder / "out", options or BatchOptions())
    opened.open()
    return opened


def test_all_lines_of_all_files_have_their_places(tmp_path: Path) -> None:
    opened = inputs(tmp_path, '\n{"prompt": "a"}\n', '{"prompt": "b"}\n\n{"prompt": "c"}')
    assert [entry.place for entry in opened.entries()] == [Place(0, 2), Place(1, 1), Place(1, 3)]
    assert (opened.num_lines, opened.last_numbers) == (3, [2, 3])
    assert opened.describe(Place(1, 3)) == f"line 3 of {tmp_path}/2.jsonl"
    assert inputs(tmp_path, '{"prompt": "a"}').describe(Place(0, 1)) == "line 1"


def test_an_id_that_an_earlier_line_has_is_an_error_that_names_that_line(tmp_path: Path) -> None:
    opened = inputs(
        tmp_path, '{"id": "a", "prompt": "x"}\n{"id": "b", "prompt": "x"}\n', '{"id": "a", "prompt": "y"}\n'
    )
    for _ in range(2):
        first, second, third = opened.entries()
        assert opened.parse(first).id == "a"
        assert opened.parse(second).id == "b"
        with pytest.raises(InvalidRequest, match=r"custom_id: line 1 of .*1\.jsonl has the same one"):
            opened.parse(third)
        assert opened.caller_id(third) == "a"


def test_lines_that_are_added_meanwhile_are_for_the_next_run(tmp_path: Path) -> None:
    opened = inputs(tmp_path, '{"prompt": "a"}\n')
    with (tmp_path / "1.jsonl").open("a") as file:
        file.write('{"prompt": "b"}\n')
    assert [entry.place for entry in opened.entries()] == [Place(0, 1)]


def test_a_format_that_is_said_is_that_of_all_files(tmp_path: Path) -> None:
    assert inputs(tmp_path, '{"prompt": "a"}\n', options=BatchOptions(format="text")).formats == ["text"]


def test_standard_input_can_be_read_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"standard input \(-\) can be one INPUT only"):
        BatchInputs(["-", "-"], tmp_path / "out", BatchOptions())


def test_memory_grows_by_few_bytes_a_line(tmp_path: Path) -> None:
    line = '{"id": "%06d", "prompt": "' + "x" * 400 + '"}\n'
    peaks = []
    for num_lines in (1_000, 6_000):
        (tmp_path / "in.jsonl").write_text("".join(line % number for number in range(num_lines)))
        tracemalloc.start()
        opened = BatchInputs([str(tmp_path / "in.jsonl")], tmp_path / "out", BatchOptions())
        opened.open()
        index = LineIndex(opened.last_numbers)
        for entry in opened.entries():
            index.finish(entry.place, 1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 5_000 < 40
