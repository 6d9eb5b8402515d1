"""The engine process: load the model, then turn requests from the pipe into tokens until somebody says stop."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

import msgspec

from kernels.errors import CudaFailure
from orcd.errors import CudaError, InvalidRequest, ModelLoadFailed, OrcdError, places
from worker.channel import Channel
from worker.contract import Abort, Add, Fatal, Load, Outputs, Ready, Request, Shutdown, TokenOutput
from worker.engine.engine import Engine
from worker.engine.runners.in_flight_file import InFlightFile
from worker.engine.token_constraint import TokenConstraint
from worker.engine.validation import refusal
from worker.fingerprint import fingerprint
from worker.health import Health
from worker.load import load_engine, open_configured_device
from worker.log import EventLog
from worker.model.gguf import open_gguf
from worker.model.registry import read_model_config
from worker.settings import Settings
from worker.text.grammar.grammar_thread import GrammarThread, late_compiler

FLUSH_S = 2.0
"""How long a process that is about to end may take to send what is unsent."""
OUTPUTS_EVERY_S, OUTPUT_S = 0.01, 80e-6
"""Steps that follow each other faster share a frame, longer after one of many outputs, so long for each: an output
costs the Celery side the same with one id or many. A choice's first and last outputs are sent at once: somebody may
wait for them, with the next request for the last."""
ADMIT_WITHIN_S, ADMIT_S = 0.01, 40e-6
"""A request starts with those that come soon behind it, as all that run wait for a step that starts any. It is held
back so long for each request that the engine has, and no longer than the first of these. Nothing else waits."""
COMPILED_EVERY_S = 0.005
"""How often an engine that has nothing else to do looks for a compiled grammar while it waits for one."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class _Stopped(Exception):
    """The other side is gone, or asked the process to leave."""


class Service:
    """One engine process from its start to its exit code."""

    def __init__(self, channel: Channel, in_flight_file: InFlightFile | None = None) -> None:
        """``in_flight_file`` says at any time which requests the engine is at work on."""
        self._channel = channel
        self._in_flight_file = in_flight_file
        self.device_is_lost = False
        """Whether a `CudaError` ended it: then nothing more can be asked of the device, not even to let go."""
        self.is_compiling = False
        """Whether a grammar was being compiled when it ended: that ends with the process only."""

    def run(self, read_settings: Callable[[], Settings]) -> int:
        """Serve until stopped (0), or until something breaks that only a new process can fix (1, after a `Fatal`)."""
        log = EventLog("auto", f"engine-{os.getpid()}")
        try:
            settings = read_settings()
            log = EventLog(settings.log_format, f"engine-{os.getpid()}")
            engine, health, admission = self._load(settings, log)
            try:
                self._serve(engine, health, admission)
            finally:
                self.is_compiling = admission.is_compiling
        except _Stopped:
            self._channel.flush(FLUSH_S)
            return 0
        except Exception as error:
            self._report(error, log)
            return 1

    def stop(self) -> None:
        """Finish the current step and leave; safe to call from a signal handler."""
        self._channel.stop_reading()

    def _load(self, settings: Settings, log: EventLog) -> tuple[Engine, Health, Admission]:
        start = time.monotonic()
        if not settings.model:
            raise ModelLoadFailed("no model is given; name a GGUF file with --model or ORCD_MODEL")
        gguf = open_gguf(settings.model)  # first: the driver creates the device's context meanwhile
        config = read_model_config(gguf)
        device = open_configured_device(settings)
        progress = _LoadProgress(self._channel)
        engine = load_engine(gguf, device, settings, progress)
        if self._in_flight_file is not None:
            engine.note_in_flight(self._in_flight_file)
        health = Health(engine, device, log, settings.vram_check_s)
        stats = health.beat()
        if not stats.healthy:
            self._channel.send(stats)  # before Ready: the Celery side must not take a job in between
        self._channel.send(
            Ready(
                model=settings.model_name,
                architecture=config.architecture,
                device=device.name,
                vocab_size=config.vocab_size,
                context_length=engine.context_length,
                max_sequence_tokens=engine.max_sequence_tokens,
                max_sequences=engine.max_sequences,
                load_ms=round((time.monotonic() - start) * 1000),
                memory_bytes=device.memory_bytes(),
                pid=os.getpid(),
                fingerprint=fingerprint(gguf, device, (settings.tokenizer, settings.chat_template)),
            )
        )
        compile_grammar = late_compiler(gguf.metadata, settings.tokenizer, config.vocab_size)
        admission = Admission(engine, compile_grammar, self._in_flight_file)
        admission.take(progress.requests)
        return engine, health, admission

    def _serve(self, engine: Engine, health: Health, admission: Admission) -> NoReturn:
        outputs = engine.outputs
        requests: list[Request] = []
        admit_at: float | None = None
        send_at = 0.0
        while True:
            can_step = engine.has_work and not self._channel.is_congested
            can_admit = requests and not engine.has_work  # they were to start with others, and nothing runs any more
            wait_s = 0 if can_step or can_admit else health.due_in_s()
            requests += self._channel.receive(min(wait_s, COMPILED_EVERY_S) if admission.is_compiling else wait_s)
            adds = [request for request in requests if isinstance(request, Add)]
            if adds and admit_at is None:
                admit_at = time.monotonic() + min(ADMIT_WITHIN_S, ADMIT_S * engine.num_requests)
            is_time = admit_at is not None and (not engine.has_work or time.monotonic() >= admit_at)
            if is_time or len(adds) < len(requests):
                admission.take(requests)
                requests.clear()
                admit_at = None
            if admission.is_compiling:
                admission.admit_compiled()
            if self._channel.is_closed:
                raise _Stopped
            if engine.has_work and not self._channel.is_congested:
                health.timed(engine.advance)
                if outputs and (not engine.has_work or time.monotonic() >= send_at):
                    sent = tuple(outputs.take_all())
                    self._channel.send(Outputs(sent))
                    # Whoever comes to an idle engine next does not wait for what was before.
                    pause_s = max(OUTPUTS_EVERY_S, OUTPUT_S * len(sent)) if engine.has_work else 0.0
                    send_at = time.monotonic() + pause_s
                elif outputs.has_due:
                    self._channel.send(Outputs(tuple(outputs.take_due())))
            if health.due_in_s() <= 0:
                stats = health.beat()
                if not self._channel.is_congested:
                    self._channel.send(stats)

    def _report(self, error: Exception, log: EventLog) -> None:
        """The final frame: a `Fatal` to the Celery side, which logs it.

        An unexpected error's text stays unsaid; only its place goes to the log here.
        """
        if isinstance(error, CudaFailure):
            error = CudaError(str(error))  # a kernel's name and the driver's words, nothing that a user wrote
        self.device_is_lost = isinstance(error, CudaError)
        if not isinstance(error, OrcdError):
            where = places(error)
            error = OrcdError(f"the engine failed with {type(error).__name__}; its log says where")
            log.event("error", level="error", code=error.code, message=error.message, where=where)
        self._channel.send(Fatal(error.code, error.message))
        self._channel.flush(FLUSH_S)


class Admission:
    """Takes requests into the engine. One with a grammar waits here until that is compiled, and nobody else does."""

    def __init__(
        self,
        engine: Engine,
        compile_grammar: Callable[[str], TokenConstraint],
        in_flight_file: InFlightFile | None = None,
    ) -> None:
        """``compile_grammar`` is called on a thread of its own."""
        self._engine = engine
        self._grammars = GrammarThread(compile_grammar)
        self._in_flight_file = in_flight_file
        self._waiting: dict[str, list[Add]] = {}  # by the grammar that is being compiled for them

    @property
    def is_compiling(self) -> bool:
        """Whether `admit_compiled` will have something to do."""
        return bool(self._waiting)

    def take(self, requests: Sequence[Request]) -> None:
        """Do what the Celery side asks for, in order."""
        adds = [request.request_id for request in requests if isinstance(request, Add)]
        if adds and self._in_flight_file is not None:
            self._in_flight_file.add(adds)
        for request in requests:
            if isinstance(request, Shutdown):
                raise _Stopped
            if isinstance(request, Add):
                self._add(request)
            else:
                self._abort(request)
        self._note_waiting()

    def admit_compiled(self) -> None:
        """Add the requests whose grammars are compiled now. Raises `OrcdError` if none will be any more."""
        for grammar, outcome in self._grammars.take_done():
            for add in self._waiting.pop(grammar):
                if isinstance(outcome, OrcdError):
                    self._engine.answer(refusal(add, outcome))
                else:
                    self._engine.add(add, outcome)
        self._note_waiting()

    def _add(self, add: Add) -> None:
        if any(add.request_id == other.request_id for adds in self._waiting.values() for other in adds):
            error = InvalidRequest("request_id belongs to a request whose grammar is still being compiled")
            self._engine.answer(refusal(add, error))
        elif not add.grammar:
            self._engine.add(add)
        elif (constraint := self._grammars.find(add.grammar)) is not None:
            self._engine.add(add, constraint)
        elif add.grammar in self._waiting:
            self._waiting[add.grammar].append(add)
        else:
            self._waiting[add.grammar] = [add]
            self._grammars.compile(add.grammar)

    def _abort(self, abort: Abort) -> None:
        self._engine.abort(abort)
        for adds in self._waiting.values():
            for index, add in enumerate(adds):
                if add.request_id == abort.request_id:
                    kept = tuple([choice for choice in add.choices if abort.choice not in (None, choice.index)])
                    ended = [choice.index for choice in add.choices if choice not in kept]
                    self._engine.answer([TokenOutput(add.request_id, choice, (), "abort") for choice in ended])
                    adds[index : index + 1] = [msgspec.structs.replace(add, choices=kept)] if kept else []
                    return

    def _note_waiting(self) -> None:
        if self._in_flight_file is not None:
            waiting = [add.request_id for adds in self._waiting.values() for add in adds]
            self._in_flight_file.set_compiling(frozenset(waiting))


class _LoadProgress:
    """Sends a `Load` frame for each new percent (passed quarters too, however large a tensor is).

    It keeps early requests, and notices when nobody waits any more. The time left is what the bytes left take at the
    rate since the first call, of 0 bytes.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._percent = -1
        self._start = time.monotonic()
        self.requests: list[Request] = []

    def __call__(self, num_bytes: int, total_bytes: int) -> None:
        if not num_bytes:
            self._start = time.monotonic()
        percent = 100 * num_bytes // total_bytes if total_bytes else 100
        elapsed_ms = (time.monotonic() - self._start) * 1000
        remaining_ms = round(elapsed_ms * (total_bytes - num_bytes) / num_bytes) if num_bytes else None
        for passed in range(self._percent + 1, percent + 1):
            if passed == percent or passed % 25 == 0:
                self._channel.send(Load(passed, num_bytes, total_bytes, remaining_ms))
        self._percent = max(self._percent, percent)
        self.requests += self._channel.receive(0)
        if self._channel.is_closed or any(isinstance(request, Shutdown) for request in self.requests):
            raise _Stopped


def serve(
    connection: socket.socket, read_settings: Callable[[], Settings], in_flight_file: InFlightFile | None = None
) -> int:
    """Serve the Celery process at the other end of ``connection``; returns the exit code.

    SIGTERM finishes the current step; SIGINT is for the parent to judge, since Ctrl-C goes to the whole group.
    """
    die_with_parent()
    service = Service(Channel(connection), in_flight_file)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _number, _frame: service.stop())
    exit_code = service.run(read_settings)
    if service.device_is_lost or service.is_compiling:
        # An orderly end would free device memory, which waits for a kernel that may never end, and cut a thread short.
        os._exit(exit_code)
    return exit_code


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, even by SIGKILL.

    Only Linux can; elsewhere, and for a parent that died before this call, the end of the pipe does it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
