"""``orcd top``, with workers played by the test."""

from __future__ import annotations

import json
import re

import pytest
import redis

from orcd.cli import top_command
from orcd.client import Client
from orcd.errors import RedisUnavailable
from orcd.monitoring.worker_registry import WorkerRegistry
from tests.orcd.cli.command_line import one_error, run


@pytest.fixture(autouse=True)
def scene(client: Client, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_command.time, "sleep", lambda _: None)
    monkeypatch.setenv("COLUMNS", "160")
    beat = {"state": "ready", "model": "demo", "device": "cpu", "tokens_per_s": 12.4, "jobs_per_s": 0.5}
    WorkerRegistry(connection).beat("busy", beat)
    client.submit_many([{"prompt": "x", "model": "demo"}] * 3)


def test_it_shows_workers_and_queues(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["top", "--count", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1 of 1 workers ready, 12 tokens/s, 0 jobs run, 3 wait" in [line.strip() for line in lines]
    [queue] = [line.split() for line in lines if line.startswith("orcd.demo")]
    oldest = queue.pop(5)
    assert queue[:7] == ["orcd.demo", "demo", "1", "0", "3", "6s", "3"]
    assert re.fullmatch(r"\d+s", oldest)
    assert any(line.startswith("busy") for line in lines)


def test_a_narrow_screen_has_fewer_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["top", "--count", "1"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["WORKER", "STATE", "MODEL", "JOBS", "RUNNING", "WAITING", "TOKENS/S", "KV"] in lines
    [queue] = [line for line in lines if line[:1] == ["demo"]]
    oldest = queue.pop(4)
    assert queue == ["demo", "1", "0", "3", "6s"]
    assert re.fullmatch(r"\d+s", oldest)
    assert all(len(" ".join(line)) <= 80 for line in lines)


def test_as_json_each_look_is_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["top", "--count", "2", "--json"]) == 0
    for line in capsys.readouterr().out.splitlines():
        look = json.loads(line)
        assert [worker["name"] for worker in look["workers"]] == ["busy"]
        assert {queue["queue"]: queue["waiting"] for queue in look["queues"]} == {"orcd": 0, "orcd.demo": 3}


def test_where_there_is_no_terminal_each_look_is_printed_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []
    monkeypatch.setattr(top_command.time, "sleep", lambda _: printed.append(capsys.readouterr().out))
    assert run(["top", "--count", "3"]) == 0
    assert ["1 of 1 workers ready" in each for each in [*printed, capsys.readouterr().out]] == [True] * 3


def test_a_redis_that_goes_away_is_told_and_waited_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([True, False])

    def workers(client: Client) -> list[object]:
        if not next(looks):
            raise RedisUnavailable("cannot reach Redis")
        return []

    monkeypatch.setattr(Client, "workers", workers)
    monkeypatch.setattr(Client, "queues", lambda _: [])
    assert run(["top", "--count", "2"]) == 0
    assert "cannot reach Redis" in capsys.readouterr().out


def test_without_redis_at_the_start_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["top", "--redis", "redis://127.0.0.1:1/0"]) == 1
    one_error(capsys, "REDIS_UNAVAILABLE")
