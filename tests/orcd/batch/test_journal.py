from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orcd.batch.batch_options import BatchOptions
from orcd.batch.formats.defaults import Defaults
from orcd.batch.journal import BatchCommand, Journal
from orcd.batch.line_index import LineIndex
from orcd.batch.place import Place
from orcd.errors import InvalidRequest

COMMAND = BatchCommand(
    ["/a.csv"], ["csv"], "/errors", BatchOptions(prompt="{x}", defaults=Defaults({"seed": 1}, "Be brief.")), [9]
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Journal.path_for(tmp_path / "out.jsonl")


def read(path: Path, index: LineIndex | None = None) -> tuple[Journal, LineIndex]:
    journal, index = Journal(path), index or LineIndex([9, 9])
    journal.read(index)
    return journal, index


def written(path: Path) -> Journal:
    journal = Journal(path)
    journal.open(COMMAND)
    journal.submit({Place(0, 1): 10, Place(0, 2): 11, Place(1, 3): 12})
    journal.fail(Place(0, 2))
    journal.close()
    return journal


def test_what_was_in_flight_and_what_has_failed_is_known_again(path: Path) -> None:
    name = written(path).name
    journal, index = read(path)
    assert journal.name == name
    assert journal.in_flight == {Place(0, 1): 10, Place(1, 3): 12}
    assert list(index.failures()) == [(Place(0, 2), 1)]


def test_a_line_that_is_done_is_not_in_flight(path: Path) -> None:
    written(path)
    index = LineIndex([9, 9])
    index.finish(Place(0, 1), 10)
    assert read(path, index)[0].in_flight == {Place(1, 3): 12}


def test_going_on_keeps_the_name_and_what_is_known(path: Path) -> None:
    name = written(path).name
    for _ in range(2):
        journal, index = read(path)
        journal.open(COMMAND, index.failures())
        journal.close()
    journal, index = read(path)
    assert journal.name == name
    assert journal.in_flight == {Place(0, 1): 10, Place(1, 3): 12}
    assert list(index.failures()) == [(Place(0, 2), 1)]
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name]


def test_an_entry_that_is_torn_or_of_no_line_is_left_out(path: Path) -> None:
    name = written(path).name
    whole = path.read_bytes()
    for end in range(len(name) + 1, len(whole)):
        path.write_bytes(whole[:end])
        journal, _ = read(path)
        assert journal.name == name
        assert journal.in_flight.items() <= {Place(0, 1): 10, Place(0, 2): 11, Place(1, 3): 12}.items()
    path.write_bytes(whole + b"+99-00000000000a\n+3.1-00000000000a\n?\n\xff\n+4-zz\n-0\n")
    assert read(path)[0].in_flight == {Place(0, 1): 10, Place(1, 3): 12}


def test_the_command_is_known_by_the_output(path: Path, tmp_path: Path) -> None:
    written(path)
    assert Journal.command(tmp_path / "out.jsonl") == COMMAND
    journal = read(path)[0]
    journal.remove()
    with pytest.raises(InvalidRequest, match=r"out\.jsonl: nothing in it is unfinished or failed"):
        Journal.command(tmp_path / "out.jsonl")


def test_a_batch_that_is_new_has_a_name_of_its_own(path: Path) -> None:
    assert read(path)[0].name == ""
    assert written(path).name != written(path).name


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"out\.resume: cannot be written"):
        Journal(tmp_path / "missing" / "out.resume").open(COMMAND)


def test_a_path_that_is_not_utf_8_is_refused_before_anything_is_written(path: Path) -> None:
    command = msgspec.structs.replace(COMMAND, inputs=["/data/caf\udce9.jsonl"])
    with pytest.raises(InvalidRequest, match=r"^/data/caf\\udce9\.jsonl: its path must be valid UTF-8; rename it$"):
        Journal(path).open(command)
    assert not list(path.parent.iterdir())


class TakesAPart(io.FileIO):
    """As a disk that is all but full."""

    def write(self, data: Any) -> int:
        return super().write(bytes(data)[:5])


def test_no_entry_is_written_in_part_without_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path)
    journal.open(COMMAND)
    journal.close()
    with TakesAPart(path, "ab") as file:
        monkeypatch.setattr(journal, "_file", file)
        journal.submit({Place(0, 1): 10, Place(0, 2): 11})
        journal.fail(Place(0, 1))
    found, index = read(path)
    assert found.in_flight == {Place(0, 2): 11}
    assert list(index.failures()) == [(Place(0, 1), 1)]
