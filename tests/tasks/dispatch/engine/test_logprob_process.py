"""Another process makes the same JSON of log probabilities, and nobody needs it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from tasks.dispatch.engine import logprob_process
from tasks.dispatch.engine.logprob_process import LogprobProcess
from tasks.dispatch.engine.reported_logprobs import ReportedLogprobs
from tasks.dispatch.engine.token_spellings import TokenSpellings
from tests.conftest import DEMO_MODEL, wait_until
from tests.worker.logprob_records import TokenLogprobs, record
from worker.model.gguf import open_gguf
from worker.text import tokenizer as tokenizers
from worker.text.process.text_process import VocabularyFiles

IDS = [*range(0, 400, 2)]
RECORDS = b"".join(record(TokenLogprobs(-0.25 * each, (each, each + 1), (-0.5, -2.0)), 2) for each in IDS)
ARGUMENTS = IDS, 2, RECORDS


@pytest.fixture(scope="module")
def pieces() -> list[bytes]:
    return list(tokenizers.of_model(open_gguf(DEMO_MODEL).metadata, "").pieces)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[LogprobProcess]:
    monkeypatch.setattr(logprob_process, "RESTART_S", 0.0)
    process = LogprobProcess(VocabularyFiles(str(DEMO_MODEL)))
    yield process
    process.close()


def test_it_makes_what_the_worker_itself_would_make(process: LogprobProcess, pieces: list[bytes]) -> None:
    own = bytes(ReportedLogprobs(*ARGUMENTS, TokenSpellings(pieces)).json())
    asking = ReportedLogprobs(*ARGUMENTS, TokenSpellings(pieces, process))
    assert bytes(asking.json()) == own, "before the vocabulary is loaded"
    wait_until(lambda: process.json(*ARGUMENTS) is not None)
    assert process.json(*ARGUMENTS) == own
    assert bytes(asking.json()) == own


def test_few_numbers_start_no_process(process: LogprobProcess, pieces: list[bytes]) -> None:
    few = ReportedLogprobs(IDS[:2], 2, RECORDS[: len(RECORDS) // 100], TokenSpellings(pieces, process))
    assert bytes(few.json()).startswith(b'[{"id":0,')
    assert process.pid is None


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


def test_one_that_cannot_load_its_vocabulary_is_not_started_again_and_again() -> None:
    process = LogprobProcess(VocabularyFiles("no-such-file.gguf"))
    assert process.json(*ARGUMENTS) is None
    child = process.pid
    assert child is not None
    wait_until(lambda: process.json(*ARGUMENTS) is None and process.pid is None)
    assert process.json(*ARGUMENTS) is None
    assert process.pid is None
    process.close()


def test_none_is_left_or_started_when_it_is_closed(process: LogprobProcess) -> None:
    wait_until(lambda: process.json(*ARGUMENTS) is not None)
    child = process.pid
    process.close()
    assert child is not None and not psutil.pid_exists(child)
    assert process.json(*ARGUMENTS) is None
    assert process.pid is None
