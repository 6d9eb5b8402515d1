"""Requests with a grammar on their way into the engine: nobody waits for what is compiled but they."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kernels.devices.open import open_device
from tests.conftest import wait_until
from tests.worker.engine.bracket_constraint import BracketConstraint
from tests.worker.engine.generation import engine, finish, ids_of
from tests.worker.engine.number_compiler import NumberCompiler
from worker import contract, health
from worker.channel import Channel
from worker.contract import Abort, Add, Choice, Fatal, Outputs, Sampling, Shutdown, TokenOutput
from worker.engine.engine import Engine
from worker.engine.runners.in_flight_file import InFlightFile
from worker.health import Health
from worker.log import EventLog
from worker.service import Admission, Service
from worker.settings import Settings


def add(name: str, grammar: str = "", *choices: Choice, max_tokens: int = 8) -> Add:
    return Add(name, (1, 2), Sampling(max_tokens=max_tokens, seed=3), choices or (Choice(0),), grammar=grammar)


def admit_all(admission: Admission) -> None:
    wait_until(lambda: admission.admit_compiled() or not admission.is_compiling)


@pytest.fixture
def machine() -> Engine:
    return engine()


def test_a_request_says_what_its_grammar_allows_and_one_without_does_not_wait_for_it(machine: Engine):
    compiler = NumberCompiler(is_held=True)
    admission = Admission(machine, compiler)
    admission.take([add("bound", "4", Choice(0), Choice(1)), add("free")])
    assert list(finish(machine)) == [("free", 0)]
    admission.admit_compiled()
    assert admission.is_compiling
    assert not machine.has_work
    compiler.may_go_on.set()
    admit_all(admission)
    outputs = finish(machine)
    assert list(outputs) == [("bound", 0), ("bound", 1)]
    expected = engine()
    expected.add(add("bound", "4", Choice(0), Choice(1)), BracketConstraint(4))
    assert outputs == finish(expected)


def test_equal_grammars_are_compiled_once_be_it_at_the_same_time_or_later(machine: Engine):
    compiler = NumberCompiler(is_held=True)
    admission = Admission(machine, compiler)
    admission.take([add("a", "4"), add("b", "4"), add("c", "5")])
    compiler.may_go_on.set()
    admit_all(admission)
    first = finish(machine)
    admission.take([add("d", "4")])
    assert not admission.is_compiling
    assert compiler.compiled == ["4", "5"]
    outputs = first | finish(machine)
    assert len({ids_of(outputs[name, 0]) for name in "abd"}) == 1


def test_a_grammar_that_cannot_be_compiled_is_an_error_of_every_choice_of_its_requests_alone(machine: Engine):
    admission = Admission(machine, NumberCompiler())
    admission.take([add("bad", "refused", Choice(0), Choice(2)), add("worse", "refused"), add("good", "4")])
    admit_all(admission)
    outputs = finish(machine)
    for key in (("bad", 0), ("bad", 2), ("worse", 0)):
        (output,) = outputs[key]
        assert (output.error_code, output.error_message) == ("INVALID_REQUEST", "no such rule")
    assert outputs["good", 0][-1].finish_reason in ("stop", "length")


def test_an_abort_of_a_request_whose_grammar_is_compiled_is_answered_at_once(machine: Engine):
    compiler = NumberCompiler(is_held=True)
    admission = Admission(machine, compiler)
    admission.take([add("a", "4", Choice(0), Choice(1)), add("b", "4"), Abort("a", 1), Abort("a", 7), Abort("c")])
    assert finish(machine) == {("a", 1): [TokenOutput("a", 1, (), "abort")]}
    admission.take([Abort("b")])
    assert finish(machine) == {("b", 0): [TokenOutput("b", 0, (), "abort")]}
    admission.take([add("b", "4")])
    compiler.may_go_on.set()
    admit_all(admission)
    assert sorted(finish(machine)) == [("a", 0), ("b", 0)], "what was aborted began, or what came again did not"
    assert compiler.compiled == ["4"]


def test_a_second_request_of_an_id_whose_grammar_is_compiled_is_refused(machine: Engine):
    compiler = NumberCompiler(is_held=True)
    admission = Admission(machine, compiler)
    admission.take([add("a", "4"), add("a"), add("a", "4")])
    assert [output.error_code for output in machine.step()] == ["INVALID_REQUEST"] * 2
    compiler.may_go_on.set()
    admit_all(admission)
    assert ids_of(finish(machine)["a", 0])


def test_requests_whose_grammars_are_compiled_are_noted_until_they_run(machine: Engine):
    with tempfile.TemporaryFile() as file:
        notes = InFlightFile(file.fileno())
        machine.note_in_flight(notes)
        compiler = NumberCompiler(is_held=True)
        admission = Admission(machine, compiler, notes)
        admission.take([add("free", max_tokens=30)])
        machine.step()
        admission.take([add("a", "4"), add("b", "4"), add("c", "refused")])
        machine.step()
        machine.step()
        assert notes.request_ids == {"free", "a", "b", "c"}
        admission.take([Abort("b")])
        machine.step()
        assert notes.request_ids == {"free", "a", "c"}
        compiler.may_go_on.set()
        admit_all(admission)
        assert {"a", "c"} <= notes.request_ids, "they may be about to be added"
        machine.step()
        assert notes.request_ids == {"free", "a"}


class ServiceOf(Service):
    """A service whose model and compiler are already there."""

    def __init__(self, channel: Channel, compiler: NumberCompiler) -> None:
        super().__init__(channel)
        self._compiler = compiler

    def _load(self, _settings: Settings, log: EventLog) -> tuple[Engine, Health, Admission]:
        machine = engine()
        return machine, Health(machine, open_device("cpu"), log, 60), Admission(machine, self._compiler)


@contextmanager
def serving(compiler: NumberCompiler) -> Iterator[tuple[socket.socket, list[int], Service]]:
    """The Celery side's end of a pipe, the exit code to be, and the service."""
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    service, exit_codes = ServiceOf(Channel(theirs), compiler), list[int]()
    thread = threading.Thread(target=lambda: exit_codes.append(service.run(Settings)))
    thread.start()
    with ours, theirs:
        try:
            yield ours, exit_codes, service
        finally:
            ours.sendall(contract.encode(Shutdown()))
            thread.join(60)
            compiler.may_go_on.set()
    assert not thread.is_alive()


def receive(ours: socket.socket, kind: type) -> contract.Event:
    splitter = contract.FrameSplitter()
    while True:
        for body in splitter.feed(ours.recv(1 << 16)):
            if isinstance(event := contract.decode_event(body), kind):
                return event


def test_an_engine_with_nothing_else_to_do_does_not_wait_for_its_next_heartbeat_when_a_grammar_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(health, "IDLE_EVERY_S", 1e6)
    compiler = NumberCompiler(is_held=True)
    with serving(compiler) as (ours, _, _):
        ours.sendall(contract.encode(add("a", "4")))
        assert compiler.has_begun.wait(60)
        compiler.may_go_on.set()
        receive(ours, Outputs)


def test_a_thread_that_dies_is_fatal_for_the_process():
    with serving(NumberCompiler()) as (ours, exit_codes, _):
        ours.sendall(contract.encode(add("a", "deadly")))
        fatal = receive(ours, Fatal)
        assert "the thread that compiles grammars died of SystemExit" in fatal.message
        assert "secret" not in fatal.message
        wait_until(lambda: exit_codes == [1])


def test_a_service_that_is_stopped_does_not_wait_for_what_is_compiled():
    compiler = NumberCompiler(is_held=True)
    with serving(compiler) as (ours, exit_codes, service):
        ours.sendall(contract.encode(add("a", "4")))
        assert compiler.has_begun.wait(60)
        ours.sendall(contract.encode(Shutdown()))
        wait_until(lambda: exit_codes == [0])
        assert service.is_compiling
