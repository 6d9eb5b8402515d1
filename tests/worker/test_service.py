"""The service on engines that do as a test says, in a thread of its own."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from kernels.devices.open import open_device
from kernels.errors import CudaFailure
from tests.conftest import wait_until
from tests.worker.engine.bracket_constraint import BracketConstraint
from worker import contract, health, service
from worker.channel import MAX_UNSENT_BYTES, Channel
from worker.contract import Abort, Add, Fatal, FinishReason, Outputs, Sampling, Stats
from worker.engine.output_buffer import OutputBuffer
from worker.engine.sequence import Sequence
from worker.health import Health
from worker.log import EventLog
from worker.service import Admission, Service
from worker.settings import Settings

ENDLESS = Sampling(max_tokens=10_000, temperature=0.0)


class FloodingEngine:
    """Always has something to say, and a lot of it."""

    has_work = True

    def __init__(self, failure: Exception | None = None) -> None:
        self.num_steps = 0
        self.num_requests = 0
        self.failure = failure
        self.outputs = OutputBuffer()
        self._sequences: dict[str, Sequence] = {}

    def advance(self) -> None:
        if self.failure:
            raise self.failure
        self.num_steps += 1
        self.say(f"{self.num_steps:0100000}", 1)

    def say(self, request_id: str, token_id: int, reason: FinishReason | None = None) -> None:
        if request_id not in self._sequences:
            self._sequences[request_id] = Sequence(request_id, 0, ENDLESS, 0, [1], num_prompt=1, max_output=10_000)
        sequence = self._sequences[request_id]
        sequence.finish_reason = reason
        sequence.token_ids.append(token_id)
        self.outputs.add(sequence)

    def stats(self, *, memory_bytes: int) -> Stats:
        return Stats(1, 0, 1, 1, self.num_steps, 1, 1, 0, 0, memory_bytes)

    def check_invariants(self) -> None:
        """Nothing can be wrong."""


class ServiceWithout(Service):
    """A service whose model is already there: the engine that the test gives."""

    def __init__(self, channel: Channel, engine: FloodingEngine) -> None:
        super().__init__(channel)
        self._engine = engine

    def _load(self, _settings: Settings, log: EventLog) -> tuple[FloodingEngine, Health, Admission]:
        return (
            self._engine,
            Health(self._engine, open_device("cpu"), log, 60),
            Admission(self._engine, BracketConstraint),
        )


@contextmanager
def serving(engine: FloodingEngine) -> Iterator[socket.socket]:
    """The Celery side's end of a pipe to a service of ``engine``."""
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    thread = threading.Thread(target=ServiceWithout(Channel(theirs), engine).run, args=(Settings,))
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join(60)
        theirs.close()
    assert not thread.is_alive()


def test_a_reader_that_does_not_read_stops_the_steps_and_loses_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("worker.service.OUTPUTS_EVERY_S", 0)
    engine = FloodingEngine()
    with serving(engine) as ours:
        num_before = -1
        while num_before != engine.num_steps:
            num_before = engine.num_steps
            time.sleep(0.2)
        assert num_before * 100_000 < MAX_UNSENT_BYTES + 2_000_000
        received, splitter = 0, contract.FrameSplitter()
        while received <= num_before:
            for body in splitter.feed(ours.recv(1 << 20)):
                event = contract.decode_event(body)
                received += len(event.outputs) if isinstance(event, Outputs) else 0
        assert engine.num_steps > num_before


class ShortEngine(FloodingEngine):
    """Has ten ids to say to a request."""

    num_left = 0

    def add(self, add: Add) -> None:
        self.num_left = 10

    @property
    def has_work(self) -> bool:
        return self.num_left > 0

    def advance(self) -> None:
        self.num_left -= 1
        self.say("r", 10 - self.num_left)


@pytest.mark.parametrize("pause", ["OUTPUTS_EVERY_S", "OUTPUT_S"])
def test_what_steps_say_soon_after_another_is_joined(pause: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(service, pause, 60)
    splitter = contract.FrameSplitter()
    engine = ShortEngine()
    with serving(engine) as ours:
        for _ in range(2):  # the second comes to an idle engine, and does not wait
            ours.sendall(contract.encode(Add("r", (1,), ENDLESS)))
            frames: list[tuple[int, ...]] = []
            while sum(map(len, frames)) < 10:
                events = map(contract.decode_event, splitter.feed(ours.recv(1 << 16)))
                frames += [event.outputs[0].ids for event in events if isinstance(event, Outputs)]
            assert frames == [(1,), (2, 3, 4, 5, 6, 7, 8, 9, 10)], "the first at once, the rest when there is no more"


class CountingEngine(FloodingEngine):
    """Counts for each request, without end for "long" and to five for others."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.started_at: dict[str, int] = {}

    @property
    def has_work(self) -> bool:
        return bool(self.counts)

    def add(self, add: Add) -> None:
        self.counts[add.request_id] = 0
        self.started_at[add.request_id] = self.num_steps

    def abort(self, abort: Abort) -> None:
        del self.counts[abort.request_id]

    def advance(self) -> None:
        time.sleep(0.001)
        self.num_steps += 1
        for request_id in list(self.counts):
            self.counts[request_id] += 1
            ends = request_id != "long" and self.counts[request_id] == 5
            self.say(request_id, self.counts[request_id], "length" if ends else None)
            if ends:
                del self.counts[request_id]


def test_first_and_final_outputs_are_sent_at_once_and_without_those_of_other_requests(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("worker.service.OUTPUTS_EVERY_S", 60)
    splitter = contract.FrameSplitter()
    engine = CountingEngine()

    def frames(number: int) -> list[list[tuple[str, tuple[int, ...]]]]:
        found: list[list[tuple[str, tuple[int, ...]]]] = []
        while len(found) < number:
            events = map(contract.decode_event, splitter.feed(ours.recv(1 << 16)))
            outputs = [event.outputs for event in events if isinstance(event, Outputs)]
            found += [[(output.request_id, output.ids) for output in each] for each in outputs]
        return found

    with serving(engine) as ours:
        ours.sendall(contract.encode(Add("long", (1,), ENDLESS)))
        assert frames(1) == [[("long", (1,))]]
        ours.sendall(contract.encode(Add("short", (1,), ENDLESS)))
        assert frames(2) == [[("short", (1,))], [("short", (2, 3, 4, 5))]]


def test_a_request_starts_with_those_behind_it_and_waits_the_longer_the_more_there_are_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(service, "time", SimpleNamespace(monotonic=lambda: now[0]))
    engine = CountingEngine()

    def wait_for(*request_ids: str) -> None:
        wait_until(lambda: engine.started_at.keys() >= set(request_ids))

    def wait_for_steps() -> None:
        num_steps = engine.num_steps
        wait_until(lambda: engine.num_steps > num_steps + 1)  # what was sent has come between two steps

    with serving(engine) as ours:
        ours.sendall(contract.encode(Add("long", (1,), ENDLESS)))
        wait_for("long")  # there is nothing that it would be in the way of
        for num_requests in (100, 10_000):
            engine.num_requests, started = num_requests, len(engine.started_at)
            now[0] += 60  # it does not matter when others have started
            for number in range(3):
                ours.sendall(contract.encode(Add(f"{num_requests} {number}", (1,), ENDLESS)))
            wait_for_steps()
            now[0] += 0.9 * min(num_requests * service.ADMIT_S, service.ADMIT_WITHIN_S)
            wait_for_steps()
            assert len(engine.started_at) == started
            now[0] += 0.2 * service.ADMIT_WITHIN_S
            names = [f"{num_requests} {number}" for number in range(3)]
            wait_for(*names)
            assert len({engine.started_at[name] for name in names}) == 1


def test_a_request_that_was_to_start_with_others_starts_when_nothing_else_runs_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It waited for the next heartbeat, up to five seconds."""
    monkeypatch.setattr(service, "time", SimpleNamespace(monotonic=lambda: 100.0))
    monkeypatch.setattr(health, "IDLE_EVERY_S", 3600)
    engine = CountingEngine()
    is_sent = threading.Event()
    advance = engine.advance
    monkeypatch.setattr(engine, "advance", lambda: is_sent.wait(60) and advance())
    with serving(engine) as ours:
        ours.sendall(contract.encode(Add("first", (1,), ENDLESS)))
        wait_until(lambda: engine.counts)
        engine.num_requests = 100
        ours.sendall(contract.encode(Add("second", (1,), ENDLESS)))
        is_sent.set()
        wait_until(lambda: "second" in engine.started_at)


def test_an_abort_does_not_wait_for_the_next_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(service, "ADMIT_WITHIN_S", 60)
    monkeypatch.setattr(service, "ADMIT_S", 60)
    engine = CountingEngine()
    with serving(engine) as ours:
        ours.sendall(contract.encode(Add("long", (1,), ENDLESS)))
        ours.recv(1 << 16)
        engine.num_requests = 1
        ours.sendall(contract.encode(Abort("long")))
        wait_until(lambda: not engine.counts)


def test_a_kernel_that_fails_is_fatal_and_named():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        failure = CudaFailure("matmul_q4_k_decode", "CUDA_ERROR_ILLEGAL_ADDRESS")
        service = ServiceWithout(Channel(theirs), FloodingEngine(failure))
        assert service.run(Settings) == 1
        assert service.device_is_lost
        (body,) = contract.FrameSplitter().feed(ours.recv(1 << 16))
    assert contract.decode_event(body) == Fatal("CUDA_ERROR", "matmul_q4_k_decode: CUDA_ERROR_ILLEGAL_ADDRESS")


def test_the_time_left_is_what_the_rest_takes_at_the_rate_so_far(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(service.time, "monotonic", lambda: now[0])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        progress = service._LoadProgress(Channel(theirs))
        for num_bytes, seconds in ((0, 0), (250, 2), (1000, 6)):
            now[0] = 100.0 + seconds
            progress(num_bytes, 1000)
        bodies = list(contract.FrameSplitter().feed(ours.recv(1 << 16)))
    loads = [contract.decode_event(body) for body in bodies]
    assert [(load.percent, load.remaining_ms) for load in loads] == [
        *((0, None), (25, 6000)),
        *((percent, 0) for percent in (50, 75, 100)),
    ]


def test_an_unexpected_failure_is_fatal_and_its_text_stays_inside(capfd: pytest.CaptureFixture[str]):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        service = ServiceWithout(Channel(theirs), FloodingEngine(ValueError("a secret")))
        assert service.run(Settings) == 1
        assert not service.device_is_lost
        (body,) = contract.FrameSplitter().feed(ours.recv(1 << 16))
    fatal = contract.decode_event(body)
    assert (fatal.code, fatal.message) == ("INTERNAL", "the engine failed with ValueError; its log says where")
    log = capfd.readouterr().err
    assert "test_service.py:" in log
    assert "secret" not in log
