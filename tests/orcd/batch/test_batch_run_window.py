"""Which lines are in flight at a time, and in which order results are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
from msgspec import structs

from orcd.batch import batch_run
from orcd.batch.batch_options import BatchOptions
from orcd.client import Client
from orcd.errors import QueueFull
from orcd.status import Status
from tests.orcd.answering_worker import AnsweringWorker
from tests.orcd.batch.batch_scene import Batch
from tests.orcd.job_writer import MakeStore


@pytest.fixture
def num_asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many jobs each look at the window was about."""
    numbers: list[int] = []
    answer = Client.statuses

    def statuses(self: Client, job_ids: Sequence[str]) -> object:
        numbers.append(len(job_ids))
        return answer(self, job_ids)

    monkeypatch.setattr(Client, "statuses", statuses)
    return numbers


def test_no_more_jobs_are_in_flight_than_the_window_holds(
    client: Client, worker: AnsweringWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_asked: list[int]
) -> None:
    monkeypatch.setattr(batch_run, "MAX_IN_FLIGHT", 4)
    batch = Batch(tmp_path, 10)
    batch.run(client)
    assert len(batch.results()) == 10
    assert max(num_asked) == 4


def test_results_can_be_had_in_the_order_of_the_lines(
    client: Client, worker: AnsweringWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Client.statuses
    first_looks = iter(range(20))

    def first_line_is_late(self: Client, job_ids: Sequence[str]) -> list[Status]:
        found = answer(self, job_ids)
        if next(first_looks, None) is not None:
            found[0] = structs.replace(found[0], state="running")
        return found

    monkeypatch.setattr(Client, "statuses", first_line_is_late)
    batch = Batch(tmp_path, 8, BatchOptions(order="input"))
    told = batch.run(client).told
    assert [result["line"] for result in batch.results()] == list(range(1, 9))
    assert told[0][0] == 0


def test_long_lines_make_the_window_smaller(
    client: Client, worker: AnsweringWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_asked: list[int]
) -> None:
    monkeypatch.setattr(batch_run, "MAX_BYTES_IN_FLIGHT", 30)
    batch = Batch(tmp_path, 6)
    batch.run(client)
    assert len(batch.results()) == 6
    assert max(num_asked) == 2, "lines of 15 bytes"


@pytest.mark.parametrize("order", ["completion", "input"])
def test_lines_for_which_the_queue_is_full_wait_and_are_submitted_later(
    order: Literal["completion", "input"],
    client: Client,
    worker: AnsweringWorker,
    make_store: MakeStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_store().limit_queue(2, replaces=True)
    monkeypatch.setattr(QueueFull, "retry_after_s", 0.01)
    batch = Batch(tmp_path, 9, BatchOptions(order=order))
    told = batch.run(client).told
    lines = [result["line"] for result in batch.results()]
    assert (lines if order == "input" else sorted(lines)) == list(range(1, 10))
    assert told[-1] == (9, 0, 27)
    assert len(told) > 2, "results are collected before all lines are submitted"
