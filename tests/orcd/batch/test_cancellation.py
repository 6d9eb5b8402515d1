from __future__ import annotations

from pathlib import Path

import pytest
import redis

from orcd.batch.batch_file import BatchFile, BatchPaths
from orcd.batch.batch_options import BatchOptions
from orcd.batch.cancellation import cancel_batch
from orcd.batch.line import Line
from orcd.client import Client
from orcd.errors import InvalidRequest
from orcd.result import Choice, Result
from tests.conftest import wait_until
from tests.orcd.answering_worker import AnsweringWorker


def stopped(folder: Path, client: Client) -> list[Line]:
    """Three submitted lines, of which the first has its result, of a run that was stopped."""
    (folder / "in.txt").write_text("one\ntwo\nthree\n")
    with pytest.raises(KeyboardInterrupt), BatchFile(paths(folder), BatchOptions()) as file:
        lines = list(file.pending())
        file.submit(lines)
        client.submit_many([line.request for line in lines], [line.job_id for line in lines])
        file.succeed(lines[0], Result(lines[0].job_id, "succeeded", [Choice("frog", [1], "stop")]))
        raise KeyboardInterrupt
    return lines


def paths(folder: Path) -> BatchPaths:
    return BatchPaths([str(folder / "in.txt")], str(folder / "out.jsonl"))


def test_what_is_in_flight_is_cancelled_and_the_next_run_has_other_jobs(client: Client, tmp_path: Path) -> None:
    lines = stopped(tmp_path, client)
    assert cancel_batch(client, tmp_path / "out.jsonl") == 2
    assert [client.status(line.job_id).state for line in lines] == ["queued", "cancelled", "cancelled"]
    assert cancel_batch(client, tmp_path / "out.jsonl") == 0
    with BatchFile(paths(tmp_path), BatchOptions()) as file:
        again = list(file.pending())
    assert [line.name.place for line in again] == [line.name.place for line in lines[1:]]
    assert not {line.job_id for line in again} & {line.job_id for line in lines}


def test_a_job_that_has_ended_is_left_for_the_next_run(client: Client, worker: AnsweringWorker, tmp_path: Path) -> None:
    lines = stopped(tmp_path, client)
    wait_until(lambda: all(client.status(line.job_id).state == "succeeded" for line in lines))
    assert cancel_batch(client, tmp_path / "out.jsonl") == 0
    with BatchFile(paths(tmp_path), BatchOptions()) as file:
        assert [line.job_id for line in file.pending()] == [line.job_id for line in lines[1:]]


def test_a_job_that_redis_has_forgotten_counts_as_cancelled(
    client: Client, connection: redis.Redis, tmp_path: Path
) -> None:
    stopped(tmp_path, client)
    connection.flushall()
    assert cancel_batch(client, tmp_path / "out.jsonl") == 2


def test_a_batch_that_is_running_is_not_cancelled(client: Client, tmp_path: Path) -> None:
    stopped(tmp_path, client)
    with (
        BatchFile(paths(tmp_path), BatchOptions()),
        pytest.raises(InvalidRequest, match="another batch is writing this file"),
    ):
        cancel_batch(client, tmp_path / "out.jsonl")
