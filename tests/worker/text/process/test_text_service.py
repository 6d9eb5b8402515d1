"""The child's limits, and what it says of calls that fail; a real process."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from worker.text.process import frames
from worker.text.process.frames import MEMORY_BYTES

Ask = Callable[[frames.Call], frames.Answer]
HI = frames.Render([{"role": "user", "content": "canary"}], None, True, False, None)


class Service:
    """The process, and the test's end of its socket."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-P", "-m", "worker.text.process", "--fd", str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])

    def ask(self, call: frames.Call) -> frames.Answer:
        self._ours.sendall(frames.encode(call))
        return frames.receive_answer(self._ours, time.monotonic() + 60)

    def has_mapped(self, name: str) -> bool:
        """Whether it has loaded a library of that name."""
        return name in Path(f"/proc/{self._process.pid}/maps").read_text()

    def limit(self, name: str) -> str:
        """A soft limit as Linux shows it."""
        lines = Path(f"/proc/{self._process.pid}/limits").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith(name)]
        return line.removeprefix(name).split()[0]

    def close(self) -> None:
        self._ours.close()
        assert self._process.wait(60) == 0


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


def test_it_renders_with_the_models_special_tokens(service: Service) -> None:
    assert service.ask(frames.Start("{{ bos_token }}{{ messages[0].content }}", "<s>")) == frames.Done()
    assert service.ask(HI) == frames.Text("<s>canary")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_processor_time_and_core_files_are_limited(service: Service) -> None:
    service.ask(frames.Start("{{ messages[0].content }}"))
    first = int(service.limit("Max address space"))
    assert MEMORY_BYTES < first < MEMORY_BYTES + 2**30
    assert service.limit("Max core file size") == "0"
    service.ask(HI)
    assert 2 <= int(service.limit("Max cpu time")) <= 10


def test_the_vocabulary_is_loaded_when_it_is_asked_for(service: Service, demo_model: Path) -> None:
    service.ask(frames.Start("{{ messages[0].content }}"))
    assert service.ask(HI) == frames.Text("canary")
    assert not service.has_mapped("tokenizers"), "who only renders does without"
    assert service.ask(frames.LoadVocabulary(str(demo_model), "")) == frames.Done()
    assert service.has_mapped("tokenizers")
    answer = service.ask(frames.Encode("old pond " * 100, True, True, None))
    assert isinstance(answer, frames.Ids)
    too_long = service.ask(frames.Encode("old pond " * 100, True, True, 5))
    assert isinstance(too_long, frames.Refused)
    assert too_long.code == "CONTEXT_LENGTH_EXCEEDED"
    assert int(service.limit("Max address space")) > MEMORY_BYTES


def test_a_vocabulary_that_cannot_be_loaded_says_why(service: Service, tmp_path: Path) -> None:
    service.ask(frames.Start(None))
    answer = service.ask(frames.LoadVocabulary(str(tmp_path / "gone.gguf"), ""))
    assert isinstance(answer, frames.Refused)
    assert answer.code == "MODEL_LOAD_FAILED" and "gone.gguf" in answer.message


def test_a_bug_is_told_by_its_place_and_quotes_nothing(service: Service) -> None:
    service.ask(frames.Start(None))
    answer = service.ask(HI)
    assert isinstance(answer, frames.Refused)
    assert answer.code == "INTERNAL"
    assert "AssertionError in" in answer.message and "text_service.py" in answer.message
    assert "canary" not in answer.message
