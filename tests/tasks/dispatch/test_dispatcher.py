"""Kill any process at any moment: every stream goes on with no token lost or repeated."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from orcd.client import Client
from orcd.events import Event, Token
from orcd.result import Result, fold
from tasks.local.redis_server import RedisServer
from tests.tasks.slow_engine import held_engine, slow_engine
from tests.tasks.worker_process import WorkerProcess, wait_until_running

NUM_STREAMS = 16


def _requests(num_tokens: int) -> list[dict[str, Any]]:
    """Greedy and sampled jobs of different lengths, which run to their full length."""
    return [
        {
            "prompt_token_ids": [5 + i, 7, 11 + i % 3],
            "max_tokens": num_tokens + i,
            "temperature": 0.0 if i % 2 else 0.8,
            "seed": i,
            "ignore_eos": True,
        }
        for i in range(NUM_STREAMS)
    ]


class Streams:
    """Follows many jobs on threads, as their clients would."""

    def __init__(self, redis_url: str, job_ids: list[str]) -> None:
        self.job_ids = job_ids
        self._events: dict[str, list[Event]] = {job_id: [] for job_id in job_ids}
        self._redis_url = redis_url
        self._threads = [threading.Thread(target=self._follow, args=(job_id,)) for job_id in job_ids]
        for thread in self._threads:
            thread.start()

    def _follow(self, job_id: str) -> None:
        with Client(self._redis_url) as client:
            self._events[job_id].extend(client.events(job_id, timeout=90))

    def results(self) -> list[Result]:
        """The jobs' results once all have ended; fails if a token index is missing or came twice."""
        for thread in self._threads:
            thread.join()
        for job_id, events in self._events.items():
            tokens = [event for event in events if isinstance(event, Token)]
            indices = [event.i + offset for event in tokens for offset in range(len(event.ids))]
            assert indices == list(range(1, len(indices) + 1)), job_id
        return [fold(job_id, self._events[job_id]) for job_id in self.job_ids]


def _contents(results: list[Result]) -> list[tuple[str, str, list[int]]]:
    return [(result.state, result.text, result.choices[0].token_ids) for result in results]


def _undisturbed(client: Client, requests: list[dict[str, Any]]) -> list[tuple[str, str, list[int]]]:
    return _contents([client.result(job_id, timeout=60) for job_id in client.submit_many(requests)])


def test_streams_go_on_when_the_engine_is_killed_under_them(
    redis_url: str, shallow_model: Path, tmp_path: Path
) -> None:
    variables = slow_engine(tmp_path)
    with WorkerProcess(redis_url, shallow_model, tmp_path, **variables) as worker, Client(redis_url) as client:
        requests = _requests(40)
        expected = _undisturbed(client, requests)
        streams = Streams(redis_url, client.submit_many(requests))
        for losses in (1, 2):
            wait_until_running(client, streams.job_ids, 10 * losses)
            worker.kill_engine()
            worker.wait_for("ready", losses + 1)
        assert _contents(streams.results()) == expected
        assert {client.status(job_id).attempt for job_id in streams.job_ids} == {1}


def test_streams_go_on_when_the_celery_process_is_killed_and_another_worker_runs(
    redis_url: str, shallow_model: Path, tmp_path: Path
) -> None:
    variables = slow_engine(tmp_path)
    with Client(redis_url) as client, WorkerProcess(redis_url, shallow_model, tmp_path, **variables) as victim:
        requests = _requests(60)
        expected = _undisturbed(client, requests)
        with held_engine(tmp_path):
            streams = Streams(redis_url, client.submit_many(requests))
            wait_until_running(client, streams.job_ids, 5)
            os.kill(victim.engine_pid, signal.SIGSTOP)  # so that nothing ends before the other worker is there
        with WorkerProcess(redis_url, shallow_model, tmp_path):
            victim.kill()
            assert _contents(streams.results()) == expected
        assert {client.status(job_id).attempt for job_id in streams.job_ids} == {2}


def test_a_worker_that_is_told_to_stop_hands_its_jobs_over(redis_url: str, shallow_model: Path, tmp_path: Path) -> None:
    leaves = {"ORCD_DRAIN_TIMEOUT_S": "2", "ORCD_LEASE_MS": "60000"}  # nobody is to find it dead meanwhile
    with (
        Client(redis_url) as client,
        WorkerProcess(redis_url, shallow_model, tmp_path, **slow_engine(tmp_path) | leaves) as leaver,
    ):
        request = {"prompt_token_ids": [9, 8, 7], "max_tokens": 40, "seed": 4, "ignore_eos": True}
        expected = _undisturbed(client, [request])
        with held_engine(tmp_path):
            streams = Streams(redis_url, client.submit_many([request]))
            wait_until_running(client, streams.job_ids, 5)
            os.kill(leaver.engine_pid, signal.SIGSTOP)  # too slow to finish in time
        with WorkerProcess(redis_url, shallow_model, tmp_path):
            leaver.process.terminate()
            assert _contents(streams.results()) == expected
        with suppress(ProcessLookupError):  # on a slow machine the worker has killed it by now
            os.kill(leaver.engine_pid, signal.SIGCONT)
        assert leaver.process.wait(60) == 0
        assert client.status(streams.job_ids[0]).attempt == 1, "leaving in good order is no failed attempt"


def test_a_redis_that_goes_away_for_a_while_costs_no_token(
    redis_server: RedisServer, shallow_model: Path, tmp_path: Path
) -> None:
    variables = slow_engine(tmp_path)
    with WorkerProcess(redis_server.url, shallow_model, tmp_path, **variables), Client(redis_server.url) as client:
        requests = _requests(40)
        expected = _undisturbed(client, requests)
        streams = Streams(redis_server.url, client.submit_many(requests))
        wait_until_running(client, streams.job_ids, 5)
        redis_server.kill()
        time.sleep(0.5)
        redis_server.start()
        assert _contents(streams.results()) == expected


def test_a_worker_whose_engine_cannot_be_brought_back_leaves_and_its_jobs_go_on_elsewhere(
    redis_url: str, shallow_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copy(shallow_model, tmp_path / shallow_model.name))
    with Client(redis_url) as client, WorkerProcess(redis_url, model, tmp_path, **slow_engine(tmp_path)) as loser:
        request = {"prompt_token_ids": [9, 8, 7], "max_tokens": 40, "seed": 4, "ignore_eos": True}
        expected = _undisturbed(client, [request])
        with held_engine(tmp_path):
            streams = Streams(redis_url, client.submit_many([request]))
            wait_until_running(client, streams.job_ids, 5)
            os.kill(loser.engine_pid, signal.SIGSTOP)
        with WorkerProcess(redis_url, shallow_model, tmp_path):
            model.unlink()
            loser.kill_engine()
            assert loser.process.wait(60) == 1
            assert {event["code"] for event in loser.events("error")} == {"ENGINE_LOST", "MODEL_LOAD_FAILED"}
            assert _contents(streams.results()) == expected


def test_a_worker_takes_no_more_jobs_than_it_may_hold(redis_url: str, shallow_model: Path, tmp_path: Path) -> None:
    with (
        WorkerProcess(redis_url, shallow_model, tmp_path, ORCD_CONCURRENCY="2", **slow_engine(tmp_path)),
        Client(redis_url) as client,
    ):
        with held_engine(tmp_path):
            job_ids = client.submit_many(
                [{"prompt_token_ids": [5], "max_tokens": 100, "ignore_eos": True, "seed": i} for i in range(5)]
            )
            wait_until_running(client, job_ids[:1], 5)
            states = [status.state for status in client.statuses(job_ids)]  # all at one time
        assert 0 < states.count("running") <= 2
        assert states.count("queued") >= 3
        assert {client.result(job_id, timeout=60).state for job_id in job_ids} == {"succeeded"}
