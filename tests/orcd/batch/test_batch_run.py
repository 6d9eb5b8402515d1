"""Lines of a prompt file on their way through a real queue, with a worker played by the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from orcd.batch import batch_run
from orcd.batch.batch_file import BatchFile, BatchPaths
from orcd.batch.batch_options import BatchOptions
from orcd.batch.batch_run import BatchRun
from orcd.batch.line import Line
from orcd.client import Client
from orcd.errors import RedisUnavailable
from orcd.result import Result
from orcd.status import Status
from orcd.store import schema
from tests.conftest import wait_until
from tests.orcd.answering_worker import AnsweringWorker, FailingWorker
from tests.orcd.batch.batch_scene import Batch, Updates


def test_an_interrupted_batch_goes_on_without_running_a_job_twice(
    client: Client,
    worker: AnsweringWorker,
    connection: redis.Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = Batch(tmp_path, 20)
    monkeypatch.setattr(batch_run, "MAX_IN_FLIGHT", 4)
    write = BatchFile.succeed

    def write_and_stop(file: BatchFile, line: Line, result: Result) -> None:
        write(file, line, result)
        if file.num_succeeded == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BatchFile, "succeed", write_and_stop)
        batch.run(client)
    assert len(batch.results()) == 7
    batch.run(client)
    assert sorted(result["line"] for result in batch.results()) == list(range(1, 21))
    assert len(connection.keys("orcd:*:job")) == 20
    assert {connection.hget(key, "attempt") for key in connection.keys("orcd:*:job")} == {b"1"}


def test_progress_counts_lines_and_tokens_and_ends_with_all_of_them(
    client: Client, worker: AnsweringWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_run, "MAX_IN_FLIGHT", 2)
    told = Batch(tmp_path, 6).run(client).told
    assert told[-1] == (6, 0, 18)
    assert told == sorted(told)
    assert len(set(told)) > 2, "it is told on the way, too"


def test_a_failed_job_is_an_error_of_its_line_and_the_others_run_on(
    client: Client, failing_worker: FailingWorker, tmp_path: Path
) -> None:
    batch = Batch(tmp_path, 3)
    told = batch.run(client).told
    assert batch.results() == []
    assert sorted((error["line"], error["code"]) for error in batch.failures()) == [
        (number, "VRAM_OOM") for number in (1, 2, 3)
    ]
    assert told[-1] == (3, 3, 9), "a failed line is done, and its tokens were generated"


DAMAGES: dict[str, Callable[[redis.Redis, str], object]] = {
    "a hole in its log": lambda connection, job_id: connection.xdel(schema.log_key(job_id), "3-0"),
    "a log of another type": lambda connection, job_id: connection.set(schema.log_key(job_id), "x"),
    "no log": lambda connection, job_id: connection.delete(schema.log_key(job_id)),
    "a record of another type": lambda connection, job_id: connection.set(schema.job_key(job_id), "x"),
    "no record": lambda connection, job_id: connection.delete(schema.job_key(job_id)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_job_that_is_damaged_in_redis_is_an_error_of_its_line_and_the_others_run_on(
    client: Client,
    connection: redis.Redis,
    worker: AnsweringWorker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    """F14: it ended the whole batch, and nothing was written for the other lines."""
    batch = Batch(tmp_path, 3)
    answer = Client.statuses
    waiting = iter([True])

    def damage_and_answer(self: Client, job_ids: Sequence[str]) -> list[Status]:
        if next(waiting, False):
            wait_until(lambda: all(status.state == "succeeded" for status in answer(self, job_ids)))
            DAMAGES[damage](connection, job_ids[1])
        return answer(self, job_ids)

    monkeypatch.setattr(Client, "statuses", damage_and_answer)
    told = batch.run(client).told
    assert sorted(result["line"] for result in batch.results()) == [1, 3]
    (failure,) = batch.failures()
    assert (failure["line"], failure["code"]) == (2, "INVALID_REQUEST" if damage == "no record" else "LOG_DAMAGED")
    assert told[-1][0] == 3, "the line is done"


def test_a_job_whose_id_is_taken_by_another_request_is_an_error_of_its_line(
    client: Client, worker: AnsweringWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Batch(tmp_path, 3)
    submit = Client.submit_many

    def submit_another(
        self: Client, fields: Sequence[Mapping[str, Any]], job_ids: Sequence[str], **options: bool
    ) -> list[str]:
        if len(job_ids) == 3:
            submit(self, [{"prompt": "another"}], [job_ids[1]])
        return submit(self, fields, job_ids, **options)

    monkeypatch.setattr(Client, "submit_many", submit_another)
    batch.run(client)
    assert sorted(result["line"] for result in batch.results()) == [1, 3]
    assert [(failure["line"], failure["code"]) for failure in batch.failures()] == [(2, "CONFLICT")]


@pytest.mark.parametrize("call", ["submit_many", "statuses", "result"])
def test_a_redis_that_is_away_for_a_moment_is_waited_for(
    call: str, client: Client, worker: AnsweringWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = getattr(Client, call)
    failures = iter([True, True])

    def away_twice(self: Client, *arguments: Mapping[str, Any], **options: bool) -> object:
        if next(failures, False):
            raise RedisUnavailable("away")
        return answer(self, *arguments, **options)

    monkeypatch.setattr(Client, call, away_twice)
    monkeypatch.setattr(batch_run, "RETRY_EVERY_S", 0.01)
    batch = Batch(tmp_path, 1)
    batch.run(client)
    assert len(batch.results()) == 1


def test_a_redis_that_stays_away_ends_the_run_and_loses_nothing(
    client: Client, worker: AnsweringWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: Client, job_ids: Sequence[str]) -> object:
        raise RedisUnavailable("away")

    batch = Batch(tmp_path, 2)
    monkeypatch.setattr(batch_run, "RETRY_EVERY_S", 0.01)
    with monkeypatch.context() as patch, pytest.raises(RedisUnavailable, match="away"):
        patch.setattr(Client, "statuses", away)
        patch.setattr(batch_run, "GIVE_UP_AFTER_S", 0.05)
        batch.run(client)
    assert batch.results() == []
    batch.run(client)
    assert len(batch.results()) == 2


def test_tokens_of_an_earlier_run_are_not_of_this_ones_rate(
    client: Client, worker: AnsweringWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Batch(tmp_path, 3)
    answer = Client.statuses

    def finish_and_stop(self: Client, job_ids: Sequence[str]) -> list[Status]:
        wait_until(lambda: all(status.state == "succeeded" for status in answer(self, job_ids)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Client, "statuses", finish_and_stop)
        batch.run(client)
    assert batch.run(client).told[-1] == (3, 0, 0)


def states_after_interrupt(client: Client, connection: redis.Redis, tmp_path: Path) -> list[bytes | None]:
    """The states of the jobs of three lines whose run was interrupted, and then cancelled."""
    source = tmp_path / "in.txt"
    source.write_text("one\ntwo\nthree\n")
    with BatchFile(BatchPaths([str(source)], str(tmp_path / "out")), BatchOptions()) as file:
        run = BatchRun(client, file, Updates())
        with pytest.raises(KeyboardInterrupt):
            run.run()
        assert run.num_in_flight == 3
        run.cancel()
    return [connection.hget(key, "state") for key in connection.keys("orcd:*:job")]


def test_what_is_in_flight_can_be_cancelled(
    client: Client, connection: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Client, job_ids: Sequence[str]) -> list[Status]:
        connection.delete(schema.job_key(job_ids[0]))
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "statuses", stop)
    assert states_after_interrupt(client, connection, tmp_path) == [b"cancelled"] * 2


def test_what_is_interrupted_while_it_is_submitted_can_be_cancelled(
    client: Client, connection: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit_many = client.submit_many

    def submit_and_stop(*arguments: Any, **options: Any) -> None:
        submit_many(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "submit_many", submit_and_stop)
    assert states_after_interrupt(client, connection, tmp_path) == [b"cancelled"] * 3


def test_lines_whose_model_nobody_serves_fail_at_once_where_that_is_asked_for(client: Client, tmp_path: Path) -> None:
    batch = Batch(tmp_path, 3)
    batch.run(client, fail_fast=True)
    assert [(failure["line"], failure["code"]) for failure in batch.failures()] == [
        (number, "MODEL_NOT_SERVED") for number in (1, 2, 3)
    ]
