"""What an engine process has said it was at work on, as it is found after the process has died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from worker.contract import decode_in_flight
from worker.engine.runners.in_flight_file import InFlightFile


@pytest.fixture
def file(tmp_path: Path) -> Iterator[IO[bytes]]:
    with (tmp_path / "in-flight").open("w+b", buffering=0) as file:
        yield file


def content(file: IO[bytes]) -> frozenset[str]:
    file.seek(0)
    return decode_in_flight(file.read())


def test_it_says_what_is_being_added_beside_what_is_in_flight_until_the_next_step(file: IO[bytes]) -> None:
    notes = InFlightFile(file.fileno())
    assert content(file) == frozenset()
    notes.add(["a", "b"])
    assert content(file) == {"a", "b"}
    notes.write(frozenset(["a", "b", "a much longer one"]))
    notes.add(["c"])
    assert content(file) == {"a", "b", "a much longer one", "c"}
    notes.write(frozenset(["c"]))
    assert content(file) == notes.request_ids == {"c"}
    notes.write(frozenset())
    assert content(file) == frozenset()


def test_requests_whose_grammars_are_compiled_are_said_whatever_the_steps_are_about(file: IO[bytes]) -> None:
    notes = InFlightFile(file.fileno())
    notes.write(frozenset(["running"]))
    notes.set_compiling(frozenset(["a", "b"]))
    assert content(file) == {"running", "a", "b"}
    notes.write(frozenset(["running"]))
    notes.set_compiling(frozenset(["b"]))
    assert content(file) == {"running", "a", "b"}, "a may be about to be added"
    notes.write(frozenset(["running"]))
    assert content(file) == {"running", "b"}
    notes.set_compiling(frozenset())
    notes.write(frozenset(["other"]))
    assert content(file) == {"other"}


def test_it_is_written_only_when_it_says_something_new(file: IO[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    notes = InFlightFile(file.fileno())
    notes.write(frozenset(["a"]))
    monkeypatch.setattr(os, "pwrite", lambda *_: pytest.fail("written again"))
    notes.write(frozenset(["a"]))
    notes.add(["a"])


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSEGV])
def test_it_outlives_its_process(file: IO[bytes], death: signal.Signals) -> None:
    code = (
        "import os, resource, sys; from worker.engine.runners.in_flight_file import InFlightFile;"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0));"
        f"InFlightFile({file.fileno()}).write(frozenset(['a', 'b'])); os.kill(os.getpid(), {int(death)})"
    )
    done = subprocess.run([sys.executable, "-c", code], pass_fds=[file.fileno()], check=False)
    assert done.returncode == -death
    assert content(file) == {"a", "b"}
