"""The whole system under a mixed load: every job and every token index is accounted for."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import redis

from orcd.client import Client
from orcd.events import End, Error, Event, Token
from orcd.result import fold
from tests.conftest import wait_until
from tests.tasks.slow_engine import held_engine, slow_engine
from tests.tasks.worker_process import WorkerProcess, wait_until_running

NUM_JOBS = 200
NUM_STREAMED = 50
NUM_CANCELLED = 20


def _mixed_requests() -> list[dict[str, Any]]:
    """Lengths, priorities and sampling of all kinds; the cancelled ones are too long to end by themselves."""
    chance = random.Random(1)
    requests: list[dict[str, Any]] = []
    for number in range(NUM_JOBS):
        is_cancelled = number >= NUM_JOBS - NUM_CANCELLED
        requests.append(
            {
                "prompt_token_ids": [chance.randrange(3, 300) for _ in range(chance.randrange(1, 40))],
                "max_tokens": 450 if is_cancelled else chance.randrange(1, 40),
                "temperature": chance.choice([0.0, 0.7, 1.3]),
                "top_p": chance.choice([1.0, 0.9]),
                "top_k": chance.choice([0, 20]),
                "min_p": chance.choice([0.0, 0.05]),
                "repetition_penalty": chance.choice([1.0, 1.2]),
                "frequency_penalty": chance.choice([0.0, 0.5]),
                "seed": number,
                "priority": chance.randrange(10),
                "n": chance.choice([1, 1, 1, 2]),
                "ignore_eos": is_cancelled or chance.random() < 0.5,
            }
        )
    return requests


def _follow(url: str, job_id: str, into: list[Event]) -> None:
    with Client(url) as client:
        for event in client.events(job_id, timeout=90):
            into.append(event)  # noqa: PERF402 - as they come


def test_two_hundred_mixed_jobs_are_all_accounted_for(redis_url: str, shallow_model: Path, tmp_path: Path) -> None:
    requests = _mixed_requests()
    slow = slow_engine(tmp_path, 0.0)
    with WorkerProcess(redis_url, shallow_model, tmp_path, by_exec=True, **slow), Client(redis_url) as client:
        with held_engine(tmp_path):
            job_ids = client.submit_many(requests)
            streamed: dict[str, list[Event]] = {job_id: [] for job_id in job_ids[:NUM_STREAMED]}
            threads = [threading.Thread(target=_follow, args=(redis_url, *item)) for item in streamed.items()]
            for thread in threads:
                thread.start()
            for job_id in job_ids[-NUM_CANCELLED:]:
                client.cancel(job_id)
        results = [client.result(job_id, timeout=90) for job_id in job_ids]
        for thread in threads:
            thread.join()

        for request, result in zip(requests[:-NUM_CANCELLED], results, strict=False):
            assert result.state == "succeeded", result
            assert len(result.choices) == request["n"]
            assert all(1 <= len(choice.token_ids) <= request["max_tokens"] for choice in result.choices)
        assert {result.state for result in results[-NUM_CANCELLED:]} == {"cancelled"}
        by_id = dict(zip(job_ids, results, strict=True))
        for job_id, events in streamed.items():
            assert fold(job_id, events) == by_id[job_id]
        _check_logs(redis_url, job_ids)


def _check_logs(redis_url: str, job_ids: list[str]) -> None:
    """In the log itself: indices 1..n once for each choice, one terminal event, and it is the last."""
    with Client(redis_url) as client, redis.Redis.from_url(redis_url) as connection:
        for job_id in job_ids:
            events = list(client.events(job_id, timeout=60))
            indices: dict[int, list[int]] = {}
            for event in events:
                if isinstance(event, Token):
                    indices.setdefault(event.choice, []).extend(event.i + k for k in range(len(event.ids)))
            assert all(seen == list(range(1, len(seen) + 1)) for seen in indices.values()), job_id
            assert [isinstance(event, End | Error) for event in events].index(True) == len(events) - 1
        wait_until(lambda: connection.zcard("orcd:running") == connection.zcard("orcd:queued") == 0)
        # Messages that are not acknowledged wait as long as those in the queues.
        keys = [
            key for key in connection.scan_iter("orcd:*") if not key.startswith((b"orcd:receivers", b"orcd:unacked:"))
        ]
        assert keys and all(connection.ttl(key) > 0 for key in keys)


def test_the_same_request_gives_the_same_ids_alone_and_in_company(
    redis_url: str, shallow_model: Path, tmp_path: Path
) -> None:
    with WorkerProcess(redis_url, shallow_model, tmp_path), Client(redis_url) as client:
        sampled = {"prompt": "autumn rain", "max_tokens": 30, "seed": 11, "temperature": 0.9, "ignore_eos": True}
        greedy = sampled | {"temperature": 0.0}

        def ids(requests: list[dict[str, Any]]) -> list[list[int]]:
            job_ids = client.submit_many(requests)
            return [client.result(job_id, timeout=60).choices[0].token_ids for job_id in job_ids]

        alone_sampled, alone_greedy = ids([sampled])[0], ids([greedy])[0]
        assert ids([sampled])[0] == alone_sampled
        others = [{"prompt": f"subject {i}", "max_tokens": 20 + i, "seed": i, "ignore_eos": True} for i in range(15)]
        in_company = ids([*others[:7], sampled, greedy, *others[7:]])
        assert in_company[7] == alone_sampled
        assert in_company[8] == alone_greedy
        assert ids([sampled | {"seed": 12}])[0] != alone_sampled


def test_a_queued_job_waits_for_a_worker_and_says_so(redis_url: str, shallow_model: Path, tmp_path: Path) -> None:
    with Client(redis_url) as client:
        job_id = client.submit(prompt_token_ids=[5, 6], max_tokens=4)
        assert client.status(job_id).state == "queued"
        seen: list[Event] = []
        thread = threading.Thread(target=_follow, args=(redis_url, job_id, seen))
        thread.start()
        wait_until(lambda: seen)
        with WorkerProcess(redis_url, shallow_model, tmp_path):
            thread.join()
    kinds = [type(event).__name__ for event in seen]
    assert kinds[0] == "Queued"
    assert "Loading" in kinds
    assert kinds[-1] == "End"


def test_in_8_bits_a_job_goes_on_as_if_nothing_had_been_and_another_kv_cache_is_named(
    redis_url: str, shallow_model: Path, tmp_path: Path
) -> None:
    request = {"prompt": "autumn rain", "max_tokens": 40, "seed": 3, "temperature": 0.8, "ignore_eos": True}
    with Client(redis_url) as client:
        quantised = WorkerProcess(redis_url, shallow_model, tmp_path, ORCD_KV_CACHE_TYPE="q8", **slow_engine(tmp_path))
        with quantised as worker:
            undisturbed = client.result(client.submit(**request), timeout=60)
            with held_engine(tmp_path):
                job_id = client.submit(**request)
                wait_until_running(client, [job_id])
                worker.kill_engine()
            resumed = client.result(job_id, timeout=60)
            assert worker.events("ready")[1:], "the engine was not killed"
            assert resumed.choices[0].token_ids == undisturbed.choices[0].token_ids
            [fingerprint] = resumed.fingerprints
            with held_engine(tmp_path):
                job_id = client.submit(**request)
                wait_until_running(client, [job_id])
                worker.kill()
        with WorkerProcess(redis_url, shallow_model, tmp_path):
            taken_over = client.result(job_id, timeout=60)
    assert "-q8-" in fingerprint
    assert taken_over.fingerprints == [fingerprint, fingerprint.replace("-q8-", "-float32-")]
