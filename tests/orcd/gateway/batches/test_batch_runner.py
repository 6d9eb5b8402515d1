"""Which batches a gateway runs, and how those end that none can run."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import openai
import pytest
import redis

from orcd.batch.results.result_file import FileUnavailable, ResultFile
from orcd.gateway.batches import batch_runner
from orcd.gateway.batches.file_store import FileStore
from orcd.store import schema
from tests.conftest import wait_until
from tests.orcd.answering_worker import AnsweringWorker
from tests.orcd.gateway.batches.batch_calls import begin, ended, line, lines_of
from tests.orcd.gateway.conftest import OpenSdk, StartGateway


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_runner, "LOOK_S", 0.05)


@pytest.fixture
def sdk(start_gateway: StartGateway, tmp_path: Path, open_sdk: OpenSdk) -> openai.OpenAI:
    return open_sdk(start_gateway(files_dir=str(tmp_path)))


def test_batches_whose_lines_wait_for_a_worker_make_room_for_others(
    sdk: openai.OpenAI, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runner, "MAX_BATCHES", 1)
    monkeypatch.setattr(batch_runner, "TURN_S", 0.2)
    batch_ids = [begin(sdk, line("a", model="nobody")) for _ in range(3)]
    wait_until(lambda: connection.zcard(schema.QUEUED) == 3)
    for batch_id in batch_ids:
        assert sdk.batches.retrieve(batch_id).status == "in_progress"
        sdk.batches.cancel(batch_id)
        assert ended(sdk, batch_id).status == "cancelled"
    assert connection.zcard(schema.QUEUED) == 0


def test_batches_run_on_while_expired_files_are_looked_for(
    start_gateway: StartGateway,
    tmp_path: Path,
    worker: AnsweringWorker,
    open_sdk: OpenSdk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a large folder, or one that is far away, that takes longer than the lease of a batch."""
    goes_on = threading.Event()

    def expiring(_: FileStore) -> list[str]:
        goes_on.wait()
        return []

    monkeypatch.setattr(FileStore, "expiring", expiring)
    sdk = open_sdk(start_gateway(files_dir=str(tmp_path)))
    try:
        assert ended(sdk, begin(sdk, line("a"))).status == "completed"
    finally:
        goes_on.set()


def test_who_cancels_a_batch_is_told_so_from_then_on(
    sdk: openai.OpenAI, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runner, "MAX_BATCHES", 0)
    batch_id = begin(sdk, line("a"))
    told = sdk.batches.cancel(batch_id)
    assert told.status == "cancelling"
    for batch in (sdk.batches.retrieve(batch_id), *sdk.batches.list(), sdk.batches.cancel(batch_id)):
        assert (batch.status, batch.cancelling_at) == ("cancelling", told.cancelling_at)
    monkeypatch.setattr(batch_runner, "MAX_BATCHES", 1)
    assert ended(sdk, batch_id).cancelling_at == told.cancelling_at
    assert connection.zcard(schema.QUEUED) == 0


@pytest.mark.parametrize("status", ["cancelled", "expired"])
def test_a_batch_whose_input_is_gone_ends_when_it_is_cancelled_or_its_window_is_over(
    sdk: openai.OpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    monkeypatch.setattr(batch_runner, "MAX_BATCHES", 0)
    monkeypatch.setattr(batch_runner, "OVERDUE_S", 0)
    monkeypatch.setattr("orcd.gateway.batches.batches.WINDOW_S", 1 if status == "expired" else 3600)
    batch_id = begin(sdk, line("a"))
    for path in tmp_path.glob("*.data"):
        path.unlink()
    if status == "cancelled":
        sdk.batches.cancel(batch_id)
    assert ended(sdk, batch_id).status == status


def test_a_batch_goes_on_once_the_disk_has_room_again(
    sdk: openai.OpenAI,
    worker: AnsweringWorker,
    connection: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def cannot_be_written(*_: Any) -> None:
        raise FileUnavailable("OUTPUT.resume: cannot be written (No space left on device)")

    with monkeypatch.context() as patched:
        patched.setattr(ResultFile, "write", full)
        batch_id = begin(sdk, line("a"), line("b", nonsense=1))
        wait_until(lambda: "No space left on device" in caplog.text)
        patched.setattr("orcd.batch.journal.Journal.open", cannot_be_written)
        wait_until(lambda: "OUTPUT.resume: cannot be written" in caplog.text)
        assert sdk.batches.retrieve(batch_id).status == "in_progress"
    batch = ended(sdk, batch_id)
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 1, 1)
    assert [each["custom_id"] for each in lines_of(sdk, batch.output_file_id)] == ["a"]
    jobs = list(connection.scan_iter(schema.job_key("*")))
    assert len(jobs) == 1, "the line ran once"
