"""A folder that gateways mount: files are written in place."""

from __future__ import annotations

from pathlib import Path

import pytest

from orcd.gateway.batches.shared_folder import LocalFolder


def test_others_see_a_file_while_it_is_written(tmp_path: Path) -> None:
    here, there = LocalFolder(tmp_path), LocalFolder(tmp_path)
    with here.workplace() as place:
        place.path("a.data").write_bytes(b"one")
        assert (there.read("a.data"), there.size("a.data")) == (b"one", 3)
        place.keep_part("a.data")
        place.keep("a.data")
        with there.workplace() as other:
            other.fetch("a.data")
            assert other.path("a.data").read_bytes() == b"one"
    with there.open("a.data") as file:
        assert file.read() == b"one"


def test_files_are_listed_by_the_beginning_of_their_names_and_deleted(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path)
    for name in ("a.data", "a.json", "b.data"):
        folder.path(name).touch()
    assert sorted(folder.names("a.")) == ["a.data", "a.json"]
    for _ in range(2):
        folder.delete("a.data")
    assert folder.names("a.") == ["a.json"]
    for read in (folder.read, folder.size, folder.open):
        with pytest.raises(FileNotFoundError):
            read("a.data")
