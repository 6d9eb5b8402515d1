"""``orcd workers``, ``drain`` and ``stop``, with workers played by the test."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable

import pytest
import redis

from orcd.cli import worker_commands
from orcd.monitoring.worker_registry import WorkerRegistry
from orcd.store import schema
from tests.conftest import DEMO_MODEL
from tests.orcd.cli.command_line import one_error, run
from tests.orcd.job_record import Ears

NOWHERE = "redis://127.0.0.1:1/0"
BUSY = {"state": "ready", "model": "demo", "device": "cpu", "jobs": 7, "running": 3, "waiting": 2, "tokens_per_s": 12.4,
        "kv_use": 0.25,
        "uptime_s": 3700, "version": "0.2.0", "host": "box", "pid": 42}  # fmt: skip


@pytest.fixture
def registry(redis_url: str, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> WorkerRegistry:
    """A Redis with the workers busy and loading, which the commands of the test use too."""
    monkeypatch.setenv("ORCD_REDIS_URL", redis_url)
    registry = WorkerRegistry(connection)
    registry.beat("busy", BUSY)
    registry.beat("loading", {"state": "loading", "load_percent": 45})
    return registry


@pytest.fixture
def while_waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Has something happen whenever the command waits."""
    return lambda happens: monkeypatch.setattr(worker_commands.time, "sleep", lambda _: happens())


def test_workers_prints_a_line_for_each(registry: WorkerRegistry, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["workers"]) == 0
    head, busy, loading = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head == ["WORKER", "STATE", "MODEL", "DEVICE", "JOBS", "RUNNING", "WAITING", "TOKENS/S", "KV", "UPTIME",
                    "SEEN", "VERSION"]  # fmt: skip
    assert busy[:11] == ["busy", "ready", "demo", "cpu", "7", "3", "2", "12", "25%", "1h", "1m"]
    assert busy[-1] == "0.2.0"
    assert loading[:5] == ["loading", "loading", "45%", "-", "-"]


def test_workers_as_json_prints_an_object_for_each(
    registry: WorkerRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["workers", "--json"]) == 0
    busy, loading = map(json.loads, capsys.readouterr().out.splitlines())
    assert BUSY.items() <= busy.items()
    assert busy["silent_ms"] < 60_000
    assert (loading["name"], loading["state"], loading["jobs"]) == ("loading", "loading", 0)


@pytest.mark.parametrize("name", ["drain", "stop"])
def test_a_worker_is_told_until_it_has_left(
    name: str, registry: WorkerRegistry, connection: redis.Redis, capsys: pytest.CaptureFixture[str],
    while_waiting: Callable[[Callable[[], None]], None],
) -> None:  # fmt: skip
    heard: list[bytes] = []
    ears = Ears(connection, schema.CONTROL)

    def hear() -> None:
        heard.extend(ears.heard())
        if len(heard) == 3:
            registry.remove("busy")

    while_waiting(hear)
    assert run([name, "busy"]) == 0
    ears.close()
    assert capsys.readouterr().out == "busy has left\n"
    assert [json.loads(text) for text in heard] == [{name: "busy"}] * 3


def test_a_worker_that_does_not_leave_in_time_is_an_error(
    registry: WorkerRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["drain", "busy", "--timeout", "0.01"]) == 1
    assert capsys.readouterr().err == "busy has not left after 0.01 s; run the command again to wait on\n"


def test_nobody_waits_who_says_so(registry: WorkerRegistry, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["stop", "busy", "--timeout", "0"]) == 0
    assert capsys.readouterr().out == "busy was told to stop\n"


@pytest.mark.parametrize("name", ["drain", "stop"])
def test_an_unknown_worker_is_an_error_that_names_those_there_are(
    name: str, registry: WorkerRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([name, "demo"]) == 2
    assert one_error(capsys, "INVALID_REQUEST") == "worker demo: unknown; the workers that are alive: busy, loading"
    registry.remove("busy")
    registry.remove("loading")
    assert run([name, "busy"]) == 2
    assert one_error(capsys, "INVALID_REQUEST").endswith("the workers that are alive: none")


@pytest.mark.parametrize("line", ["drain", "stop", "drain a --timeout -1", "workers a", "workers --redis nonsense"])
def test_wrong_usage_is_one_line_and_exit_code_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shlex.split(line)) == 2
    one_error(capsys, "INVALID_REQUEST")


@pytest.mark.parametrize("name", ["workers", "drain", "stop"])
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"Usage: orcd {name} ")
    assert len(page) > 150


@pytest.mark.parametrize("line", ["workers", "drain a", "stop a"])
def test_without_redis_every_command_says_so(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*line.split(), "--redis", NOWHERE]) == 1
    assert one_error(capsys, "REDIS_UNAVAILABLE").startswith("cannot reach Redis at redis://127.0.0.1:1/0; ")


def test_doctor_prints_what_it_finds_and_what_to_do(
    registry: WorkerRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(DEMO_MODEL)
    assert run(["doctor", "--device", "cpu", "--model", model]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["good", "device"], ["good", "model"]]
    assert any(line.split() == ["->", "set", "appendonly", "yes"] for line in lines)
    assert run(["doctor", "--device", "cpu", "--model", "missing.gguf", "--redis", NOWHERE, "--json"]) == 1
    found = {check["name"]: check for check in map(json.loads, capsys.readouterr().out.splitlines())}
    assert {name: check["outcome"] for name, check in found.items()} == {
        "device": "good", "model": "problem", "redis": "problem",
    }  # fmt: skip


def test_doctor_says_what_is_wrong_with_settings_of_workers(
    registry: WorkerRegistry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCD_MAX_SEQUENCES", "many")
    assert run(["doctor", "--device", "cpu", "--json"]) == 1
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (first["name"], first["outcome"]) == ("worker", "problem")
    assert "ORCD_MAX_SEQUENCES must be a whole number" in first["found"]


def test_doctor_leaves_the_machine_out_where_a_worker_is_not_installed(
    registry: WorkerRegistry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_commands, "WORKER_PACKAGES", ("no_such_package",))
    assert run(["doctor", "--json"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (first["outcome"], first["advice"]) == ("warning", "pip install 'orcd[worker]', if one shall run here")
