"""Another process makes the same JSON of log probabilities, and nobody needs it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.dispatch.engine import logprob_process
from tasks.dispatch.engine.logprob_process import LogprobProcess
from tasks.dispatch.engine.reported_logprobs import ReportedLogprobs
from tasks.dispatch.engine.token_spellings import TokenSpellings
from tasks.dispatch.prompt_encoder import PromptEncoder
from tests.conftest import DEMO_MODEL, wait_until
from tests.models.files import SMALL
from tests.worker.logprob_records import TokenLogprobs, record
from tests.worker.text.test_threads import no_thread
from worker.model.gguf import open_gguf
from worker.settings import Settings
from worker.text import tokenizer as tokenizers

IDS = [*range(0, 400, 2)]
RECORDS = b"".join(record(TokenLogprobs(-0.25 * each, (each, each + 1), (-0.5, -2.0)), 2) for each in IDS)
ARGUMENTS = IDS, 2, RECORDS


@pytest.fixture(scope="module")
def pieces() -> list[bytes]:
    return list(tokenizers.of_model(open_gguf(DEMO_MODEL).metadata, "").pieces)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch, pieces: list[bytes]) -> Iterator[LogprobProcess]:
    monkeypatch.setattr(logprob_process, "RESTART_S", 0.0)
    process = LogprobProcess(pieces)
    yield process
    process.close()


@pytest.fixture
def hanging(process: LogprobProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Thread]:
    """A thread that waits for an answer of a process that has been stopped."""
    monkeypatch.setattr(logprob_process, "ANSWER_S", 600)
    wait_until(lambda: process.json(*ARGUMENTS) is not None)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    thread = threading.Thread(target=process.json, args=ARGUMENTS, daemon=True)
    thread.start()
    wait_until(process._lock.locked)
    yield thread
    if process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
    thread.join(60)


def test_it_makes_what_the_worker_itself_would_make(process: LogprobProcess, pieces: list[bytes]) -> None:
    own = bytes(ReportedLogprobs(*ARGUMENTS, TokenSpellings(pieces)).json())
    asking = ReportedLogprobs(*ARGUMENTS, TokenSpellings(pieces, process))
    assert bytes(asking.json()) == own, "before the vocabulary is loaded"
    wait_until(lambda: process.json(*ARGUMENTS) is not None)
    assert process.json(*ARGUMENTS) == own
    assert bytes(asking.json()) == own


def test_many_are_made_in_one_call(process: LogprobProcess, pieces: list[bytes]) -> None:
    few, others = (IDS[:3], 2, RECORDS[:60]), ([*reversed(IDS)], 2, RECORDS)
    wait_until(lambda: process.json(*ARGUMENTS) is not None)
    own = [bytes(ReportedLogprobs(*each, TokenSpellings(pieces)).json()) for each in (ARGUMENTS, others)]
    assert process.json_of_all([ARGUMENTS, few, others]) == [own[0], None, own[1]], "few are faster made here"
    assert process.json_of_all([]) == []
    reported = [ReportedLogprobs(*each, TokenSpellings(pieces, process)) for each in (ARGUMENTS, few, others)]
    ReportedLogprobs.make_json(reported)
    ReportedLogprobs.make_json([])
    process.close()
    assert [bytes(reported[0].json()), bytes(reported[2].json())] == own
    assert bytes(reported[0].json()) == own[0], "once more, where Redis was away"
    assert bytes(reported[1].json()).startswith(b'[{"id":0,')


def test_what_finds_no_room_in_the_shared_memory_beside_others_is_made_in_another_call(
    process: LogprobProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_until(lambda: process.json(*ARGUMENTS) is not None)
    own = process.json(*ARGUMENTS)
    long = IDS * 5, 2, RECORDS * 5
    process._end()
    monkeypatch.setattr(logprob_process, "SHARED_BYTES", logprob_process.CALL_BYTES + 50_000)
    wait_until(lambda: process.json(*ARGUMENTS) is not None)
    calls: list[int] = []
    ask = process._ask
    monkeypatch.setattr(process, "_ask", lambda results: calls.append(len(results)) or ask(results))
    made = process.json_of_all([ARGUMENTS, long, *[ARGUMENTS] * 4])
    assert made == [own, None, *[own] * 4], "one finds no room even alone"
    assert calls[0] == 6 and len(calls) < 6


def test_more_than_one_call_can_hold_is_made_in_several(
    process: LogprobProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_until(lambda: process.json(*ARGUMENTS) is not None)
    own = process.json(*ARGUMENTS)
    monkeypatch.setattr(logprob_process, "_size", lambda _: logprob_process.CALL_BYTES // 2 + 1)
    assert process.json_of_all([ARGUMENTS] * 3) == [own] * 3
    monkeypatch.setattr(logprob_process, "_size", lambda _: logprob_process.CALL_BYTES + 1)
    assert process.json_of_all([ARGUMENTS] * 3) == [None] * 3


def test_what_a_process_that_hangs_did_not_make_is_not_asked_for_once_more(
    process: LogprobProcess, hanging: threading.Thread, pieces: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = bytes(ReportedLogprobs(*ARGUMENTS, TokenSpellings(pieces)).json())
    reported = [ReportedLogprobs(*ARGUMENTS, TokenSpellings(pieces, process)) for _ in range(5)]
    ReportedLogprobs.make_json(reported)
    monkeypatch.setattr(process, "json", lambda *_: pytest.fail("it was asked again"))
    assert [bytes(each.json()) for each in reported] == [own] * 5


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_that_dies_while_nobody_asks_is_no_zombie(process: LogprobProcess) -> None:
    wait_until(lambda: process.json(*ARGUMENTS) is not None)
    child = process.pid
    assert child is not None
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{child}").exists())


def test_few_numbers_start_no_process(process: LogprobProcess, pieces: list[bytes]) -> None:
    few = ReportedLogprobs(IDS[:2], 2, RECORDS[: len(RECORDS) // 100], TokenSpellings(pieces, process))
    assert bytes(few.json()).startswith(b'[{"id":0,')
    assert process.pid is None


def test_one_for_which_there_may_be_no_thread_is_not_asked(
    process: LogprobProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr(threading, "_start_new_thread", no_thread)
        assert process.json(*ARGUMENTS) is None
    assert process.pid is None
    wait_until(lambda: process.json(*ARGUMENTS) is not None)


def test_one_that_was_killed_is_started_again(process: LogprobProcess, pieces: list[bytes]) -> None:
    wait_until(lambda: process.json(*ARGUMENTS) is not None)
    first = process.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    made = ReportedLogprobs(*ARGUMENTS, TokenSpellings(pieces, process)).json()
    wait_until(lambda: process.json(*ARGUMENTS) is not None)
    assert process.json(*ARGUMENTS) == bytes(made)
    assert process.pid != first


def test_one_that_hangs_is_waited_for_only_so_long(process: LogprobProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprob_process, "ANSWER_S", 1)
    wait_until(lambda: process.json(*ARGUMENTS) is not None)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    assert process.json(*ARGUMENTS) is None
    assert process.pid is None


def test_nobody_waits_long_for_an_answer_that_another_thread_waits_for(
    process: LogprobProcess, hanging: threading.Thread
) -> None:
    second = threading.Thread(target=process.json, args=ARGUMENTS, daemon=True)
    second.start()
    second.join(60)
    assert hanging.is_alive() and not second.is_alive()


def test_one_that_hangs_can_be_closed_at_once(process: LogprobProcess, hanging: threading.Thread) -> None:
    closer = threading.Thread(target=process.close, daemon=True)
    closer.start()
    closer.join(60)
    hanging.join(60)
    assert not closer.is_alive() and not hanging.is_alive()
    assert process.pid is None


def test_an_answer_for_which_there_was_no_memory_is_no_later_one(
    process: LogprobProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def receive(*_: Any) -> bytearray:
        monkeypatch.undo()
        raise MemoryError

    wait_until(lambda: process.json(*ARGUMENTS) is not None)
    others = [*reversed(IDS)], *ARGUMENTS[1:]
    own = process.json(*others)
    monkeypatch.setattr(logprob_process, "receive", receive)
    assert process.json(*ARGUMENTS) is None
    assert process.json(*others) in (None, own)


def test_it_knows_the_tokens_of_a_model_whose_file_was_replaced_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: list[bytes]
) -> None:
    monkeypatch.setattr(logprob_process, "RESTART_S", 0.0)
    model = tmp_path / "model.gguf"
    shutil.copy(DEMO_MODEL, model)
    with closing(PromptEncoder.load(Settings(model=str(model)))) as encoder:
        other = tmp_path / "other.gguf"
        shutil.copy(SMALL["llama2-q4_0"], other)
        other.replace(model)
        process = encoder._spellings.process
        assert process is not None
        wait_until(lambda: process.json(*ARGUMENTS) is not None)
        assert process.json(*ARGUMENTS) == bytes(ReportedLogprobs(*ARGUMENTS, TokenSpellings(pieces)).json())


def test_one_that_cannot_be_started_is_not_started_again_and_again(
    pieces: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, spawned = LogprobProcess(pieces), list[int | None]()
    spawn = process._spawn
    monkeypatch.setattr(process, "_spawn", lambda: (spawn(), spawned.append(process.pid)))
    monkeypatch.setattr(logprob_process, "RESTART_S", 600.0)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    wait_until(lambda: process.json(*ARGUMENTS) is None and process.pid is None)
    assert process.json(*ARGUMENTS) is None
    assert len(spawned) == 1
    process.close()


def test_none_is_left_or_started_when_it_is_closed(process: LogprobProcess) -> None:
    wait_until(lambda: process.json(*ARGUMENTS) is not None)
    child = process.pid
    process.close()
    assert child is not None and not psutil.pid_exists(child)
    assert process.json(*ARGUMENTS) is None
    assert process.pid is None
