"""The engine process seen from the Celery side: real ``python -m worker``, and children that misbehave."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import psutil
import pytest

from tasks.dispatch.engine import engine_process, engine_run
from tasks.dispatch.engine.engine_process import EngineExit, EngineProcess
from tests.conftest import wait_until
from tests.tasks.slow_engine import held_engine, slow_engine
from tests.worker.tiny_model import VOCAB_SIZE, write_tiny_model
from worker import contract
from worker.contract import Add, Fatal, Load, Outputs, Ready, Sampling
from worker.settings import Settings


class Line:
    """An engine process with what it says: its events, then its exit code, run after run."""

    def __init__(self, settings: Settings) -> None:
        self.heard: SimpleQueue[contract.Event | EngineExit] = SimpleQueue()
        self.deaths: list[str] = []
        self.process = EngineProcess(settings, self.heard.put, self.heard.put, lambda name, _: self.deaths.append(name))
        self.process.start()

    def next(self) -> contract.Event | EngineExit:
        return self.heard.get(timeout=60)

    def until(self, kind: type) -> list[contract.Event | EngineExit]:
        """What is heard up to the first of ``kind``, which is the last of the list."""
        heard = [self.next()]
        while not isinstance(heard[-1], kind):
            assert not isinstance(heard[-1], EngineExit), f"the engine left: {heard}"
            heard.append(self.next())
        return heard

    def exit(self) -> EngineExit:
        """The next exit, whatever is said before."""
        while not isinstance(heard := self.next(), EngineExit):
            continue
        return heard

    def exit_code(self) -> int:
        """The code of the next exit."""
        return self.exit().code


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    model = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")
    return Settings(model=str(model), device="cpu", log_format="json")


@pytest.fixture
def start(settings: Settings) -> Iterator[Callable[..., Line]]:
    """Starts engine processes; at the end all are stopped and nothing is left running."""
    lines: list[Line] = []

    def start(settings: Settings = settings) -> Line:
        lines.append(Line(settings))
        return lines[-1]

    yield start
    for line in lines:
        line.process.stop()
    left = [child for child in psutil.Process().children() if "--in-flight-fd" in child.cmdline()]
    assert left == []


@pytest.fixture
def start_child(start: Callable[..., Line], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Line]:
    """Starts a child with a body of its own, in Python; ``pipe`` is its end of the socketpair."""

    def start_child(body: str, settings: Settings | None = None) -> Line:
        script = tmp_path / "engine"
        opening = "import os, signal, socket, sys, time\npipe = socket.socket(fileno=int(sys.argv[-1]))\n"
        script.write_text(f"#!{sys.executable}\n{opening}{body}\n")
        script.chmod(0o700)
        monkeypatch.setattr(engine_run.sys, "executable", str(script))
        return start(settings) if settings else start()

    return start_child


def _tokens(line: Line, request_id: str) -> tuple[int, ...]:
    ids: tuple[int, ...] = ()
    while True:
        outputs = line.until(Outputs)[-1]
        assert isinstance(outputs, Outputs)
        for output in outputs.outputs:
            assert output.request_id == request_id
            ids += output.ids
            if output.finish_reason:
                return ids


def test_a_worker_py_in_the_current_folder_is_not_mistaken_for_ours(
    start: Callable[..., Line], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker.py").write_text("raise SystemExit('somebody else')")
    monkeypatch.chdir(tmp_path)
    assert isinstance(start().until(Ready)[-1], Ready)


def test_it_loads_serves_dies_starts_again_and_stops(
    start: Callable[..., Line], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", slow_engine(tmp_path, 0.0)["PYTHONPATH"])
    line = start()
    *loads, ready = line.until(Ready)
    assert all(isinstance(load, Load) for load in loads)
    assert isinstance(ready, Ready)
    assert ready.pid == line.process.pid
    assert ready.vocab_size == VOCAB_SIZE
    add = Add("a", (1, 2, 3), Sampling(max_tokens=8, temperature=0.0))
    assert line.process.send(add)
    ids = _tokens(line, "a")
    assert len(ids) == 8

    with held_engine(tmp_path):
        line.process.send(Add("endless", (1,), Sampling(max_tokens=50)))
        line.until(Outputs)
        os.kill(ready.pid, signal.SIGKILL)
        assert line.exit() == EngineExit(-signal.SIGKILL, is_fault=False, in_flight=frozenset(["endless"]))
    assert line.heard.empty(), "the exit comes after the last frame"
    assert line.process.pid is None
    assert not line.process.send(add), "nobody has it"

    line.process.restart()
    again = line.until(Ready)[-1]
    assert isinstance(again, Ready)
    assert again.pid == line.process.pid != ready.pid
    line.process.send(add)
    assert _tokens(line, "a") == ids

    line.process.stop()
    assert line.exit_code() == 0, "asked to leave, it leaves in good order"
    assert not psutil.pid_exists(again.pid)


def test_killing_it_is_a_fault_of_its_own(start: Callable[..., Line]) -> None:
    """Whoever does so has found that it hangs."""
    line = start()
    line.until(Load)
    line.process.kill()
    assert line.exit() == EngineExit(-signal.SIGKILL, is_fault=True)
    line.process.kill()  # nothing is there to kill


@pytest.mark.parametrize(
    ("end", "is_fault"),
    [
        ("sys.exit(3)", True),
        ("sys.exit(0)", False),
        ("os.kill(os.getpid(), signal.SIGSEGV)", True),
        ("os.abort()", True),
        ("os.kill(os.getpid(), signal.SIGKILL)", False),
        ("os.kill(os.getpid(), signal.SIGTERM)", False),
        ("os.kill(os.getpid(), signal.SIGHUP)", False),
    ],
)
def test_an_exit_says_whether_the_process_is_at_fault_or_somebody_from_outside(
    start_child: Callable[..., Line], end: str, is_fault: bool
) -> None:
    body = f"import resource\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n{end}"
    assert start_child(body).exit().is_fault is is_fault


def test_each_run_says_only_what_it_was_at_work_on_itself(start_child: Callable[..., Line]) -> None:
    content = contract.encode_in_flight(["a#1"])
    body = f"os.fstat(int(sys.argv[-3])).st_size or os.pwrite(int(sys.argv[-3]), {content!r}, 0)"
    line = start_child(body)
    for _ in range(2):
        assert line.exit() == EngineExit(0, is_fault=False, in_flight=frozenset(["a#1"]))
        line.process.restart()


def test_stopping_during_the_load_leaves_nothing_behind(start: Callable[..., Line]) -> None:
    line = start()
    first = line.next()
    assert isinstance(first, Load)
    pid = line.process.pid
    line.process.stop()
    assert pid is not None
    assert not psutil.pid_exists(pid)


def test_a_model_that_cannot_be_loaded_is_a_fatal_event_and_an_exit(start: Callable[..., Line]) -> None:
    line = start(Settings(model="/nowhere/model.gguf", device="cpu", log_format="json"))
    fatal = line.next()
    assert isinstance(fatal, Fatal)
    assert fatal.code == "MODEL_LOAD_FAILED"
    assert "/nowhere/model.gguf" in fatal.message
    assert line.exit_code() == 1


def test_only_our_own_settings_reach_the_engine(
    start_child: Callable[..., Line], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A variable of the Celery process would otherwise outweigh what a flag has said."""
    monkeypatch.setenv("ORCD_DEVICE", "cuda:3")
    monkeypatch.setenv("ORCD_MAX_SEQUENCES", "7")
    seen = tmp_path / "seen"
    body = f"open({str(seen)!r}, 'w').write(repr(sorted(kv for kv in os.environ.items() if kv[0][:5] == 'ORCD_')))"
    assert start_child(body, Settings(model="m.gguf", device="cpu")).exit_code() == 0
    assert seen.read_text() == repr([("ORCD_DEVICE", "cpu"), ("ORCD_MODEL", "m.gguf")])


@pytest.mark.parametrize(
    "words", [b"\x00\x00\x00\x02\x91\xa1", b"\x00\x00\x00\x03\x91\xa1x", b"HTTP/1.1 400 Bad Request\r\n\r\n"]
)
def test_a_child_that_speaks_nonsense_is_killed(start_child: Callable[..., Line], words: bytes) -> None:
    line = start_child(f"pipe.sendall({words!r})\ntime.sleep(60)")
    assert line.exit() == EngineExit(-signal.SIGKILL, is_fault=True)
    assert line.heard.empty()


@pytest.mark.parametrize("final_bytes", [b"", b"\x00\x00\x00\x09half"])
def test_a_child_that_dies_at_once_or_in_the_middle_of_a_frame_is_an_exit(
    start_child: Callable[..., Line], final_bytes: bytes
) -> None:
    assert start_child(f"pipe.sendall({final_bytes!r})\nsys.exit(3)").next() == EngineExit(3, is_fault=True)


def test_a_program_that_cannot_be_started_is_an_exit(
    start: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_run.sys, "executable", "/nowhere/python")
    line = start()
    assert line.exit_code() == engine_process.CANNOT_START
    monkeypatch.undo()
    line.process.restart()
    line.until(Ready)


def test_a_child_that_does_not_leave_when_asked_is_killed(
    start_child: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "STOP_AFTER_S", 0.1)
    load = contract.encode(Load(0, 0, 1))
    line = start_child(f"pipe.sendall({load!r})\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)")
    line.until(Load)
    line.process.stop()
    assert line.exit_code() == -signal.SIGKILL


@pytest.mark.parametrize("stuck", ["time.sleep(60)", "os.kill(os.getpid(), signal.SIGSTOP)"])
def test_a_child_that_stops_reading_blocks_nobody_and_is_killed(start_child: Callable[..., Line], stuck: str) -> None:
    load = contract.encode(Load(0, 0, 1))
    settings = Settings(device="cpu", engine_step_timeout_s=3)
    line = start_child(f"pipe.sendall({load!r})\n{stuck}", settings)
    line.until(Load)
    add = Add("a", tuple(range(10**6)), Sampling(max_tokens=1))
    for _ in range(3):
        line.process.send(add)
    assert line.heard.empty(), "F15: whoever sends waits for nobody, and least until the child has been killed"
    assert line.exit() == EngineExit(-signal.SIGKILL, is_fault=True), "half a frame cannot be mended"
    assert time.monotonic() - line.process.last_heard > 2.5
    assert line.deaths == []


def test_a_child_that_hangs_when_it_should_leave_is_killed(
    start_child: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "STOP_AFTER_S", 0.1)
    assert start_child("pipe.close()\ntime.sleep(60)").exit_code() == -signal.SIGKILL


def test_a_thread_that_dies_takes_its_engine_along_and_is_told_of(settings: Settings) -> None:
    deaths: SimpleQueue[tuple[str, BaseException | None]] = SimpleQueue()

    def fail(_event: contract.Event) -> None:
        raise KeyError("a bug")

    process = EngineProcess(settings, fail, lambda _: None, lambda *death: deaths.put(death))
    process.start()
    name, error = deaths.get(timeout=60)
    assert (name, type(error)) == ("engine reader", KeyError)
    pid = process.pid
    assert pid is not None
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    process.stop()


def test_it_is_heard_of_whenever_it_says_something(start: Callable[..., Line]) -> None:
    line = start()
    line.until(Ready)
    heard = line.process.last_heard
    line.process.send(Add("a", (1,), Sampling(max_tokens=1)))
    line.until(Outputs)
    assert heard < line.process.last_heard <= time.monotonic()
