"""The commands that talk to a queue, with a worker played by the test."""

from __future__ import annotations

import io
import json
import re
import shlex

import pytest
import redis

from orcd.cli import terminal
from orcd.client import Client
from tests.orcd.answering_worker import AnsweringWorker, FailingWorker
from tests.orcd.cli.command_line import flags, one_error, run
from tests.orcd.job_writer import MakeStore, claimed

NOWHERE = "redis://127.0.0.1:1/0"
COMMANDS = {
    "generate": {
        "--redis",
        "--model",
        "--max-tokens",
        "--temperature",
        "--top-p",
        "--top-k",
        "--seed",
        "--stop",
        "--idempotency-key",
        "--fail-fast",
    },
    "cancel": set(),
    "status": set(),
    "follow": {"--from"},
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_flags_that_other_tools_rely_on(name: str) -> None:
    assert COMMANDS[name] <= flags(name)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"Usage: orcd {name} ")
    assert len(page) > 150


WRONG_USAGE = [
    "generate",
    "generate hi --temperature hot",
    "generate hi --temperature 3",
    "generate hi --max-tokens 0",
    "generate hi --stop ''",
    "generate ''",
    "generate hi --redis nonsense",
    "generate hi --idempotency-key ''",
    "status",
    "status 'no such id'",
    "follow job --from -1",
]


@pytest.mark.parametrize("line", WRONG_USAGE)
def test_wrong_usage_is_one_line_and_exit_code_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shlex.split(line)) == 2
    one_error(capsys, "INVALID_REQUEST")


@pytest.mark.parametrize("line", ["generate hi", "cancel job", "status job", "follow job"])
def test_without_redis_every_command_says_so(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*line.split(), "--redis", NOWHERE]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith("orcd: REDIS_UNAVAILABLE: cannot reach Redis at redis://127.0.0.1:1/0; ")


def test_generate_prints_the_answer(
    client: Client, worker: AnsweringWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "Write a haiku", "--max-tokens", "5", "--stop", "a", "--stop", "b"]) == 0
    assert capsys.readouterr().out == " 1 2 3\n"


@pytest.mark.parametrize("raw", [True, False])
def test_generate_sends_a_chat_message_unless_it_is_told_not_to(
    raw: bool, client: Client, worker: AnsweringWorker, connection: redis.Redis
) -> None:
    options = ["--model", "demo", "--max-tokens", "5", "--temperature", "0.5", "--top-p", "0.9", "--top-k", "4",
               "--seed", "7", "--stop", "x"]  # fmt: skip
    assert run(["generate", "hello", *options, *["--raw"] * raw]) == 0
    [key] = connection.keys("orcd:*:job")
    request = json.loads(connection.hget(key, "request") or b"")
    text = {"prompt": "hello"} if raw else {"messages": [{"role": "user", "content": "hello"}]}
    assert request == text | {"model": "demo", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": 7,
                              "stop": ["x"]}  # fmt: skip


def test_generate_reads_standard_input(client: Client, worker: AnsweringWorker, connection: redis.Redis,
                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("größer".encode())))
    assert run(["generate", "-", "--raw"]) == 0
    [key] = connection.keys("orcd:*:job")
    assert json.loads(connection.hget(key, "request") or b"")["prompt"] == "größer"


def test_generate_with_a_key_shows_the_answer_that_there_is(client: Client, worker: AnsweringWorker,
                                                            connection: redis.Redis) -> None:  # fmt: skip
    for _ in range(2):
        assert run(["generate", "hi", "--idempotency-key", "k"]) == 0
    assert len(connection.keys("orcd:*:job")) == 1
    assert run(["generate", "hello", "--idempotency-key", "k"]) == 1


def test_generate_as_json_prints_every_event(
    client: Client, worker: AnsweringWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "hi", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["type"] for event in events if event["type"] != "queued"] == ["started", "token", "end"]
    assert events[-1]["tokens_out"] == 3


def test_a_failed_job_is_an_error_with_its_code(client: Client, failing_worker: FailingWorker,
                                                capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert run(["generate", "hi"]) == 1
    assert one_error(capsys, "VRAM_OOM") == "does not fit"


def test_ctrl_c_cancels_the_job(client: Client, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch,
                                capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    def interrupt(events: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal, "show_text", interrupt)
    assert run(["generate", "hi"]) == 130
    one_error(capsys, "CANCELLED")
    [key] = connection.keys("orcd:*:job")
    assert connection.hget(key, "state") == b"cancelled"


def test_cancel_status_and_follow_tell_of_a_job(client: Client, make_store: MakeStore,
                                                capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    client.submit(prompt="a", job_id="waits")
    client.submit(prompt="a", job_id="runs")
    writer = claimed(make_store(), "runs")
    writer.start()
    writer.tokens(3)
    assert run(["cancel", "waits"]) == 0
    assert capsys.readouterr().out == "cancelled\n"
    assert run(["status", "runs"]) == 0
    assert re.search(r"^state +running$", capsys.readouterr().out, re.MULTILINE)
    assert run(["status", "runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens_out"] == 3
    writer.tokens(1)
    writer.end()
    assert run(["follow", "runs"]) == 0
    assert capsys.readouterr().out == " 1 2 3 4\n"
    assert run(["follow", "runs", "--from", "3"]) == 0
    assert capsys.readouterr().out == " 4\n"
    assert run(["follow", "waits"]) == 1
    one_error(capsys, "CANCELLED")


def test_status_says_why_a_job_failed_and_who_ran_it(client: Client, make_store: MakeStore,
                                                     capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    client.submit(prompt="a", job_id="failed")
    claimed(make_store(), "failed").fail("VRAM_OOM", "does not fit")
    assert run(["status", "failed"]) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (said["error"], said["worker"], said["losses"]) == ("VRAM_OOM: does not fit", "worker-1", "0")
    assert run(["status", "failed", "--json"]) == 0
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["message"]) == ("VRAM_OOM", "does not fit")


@pytest.mark.parametrize("name", ["cancel", "status", "follow"])
def test_an_unknown_job_is_named(name: str, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "nobody"]) == 2
    assert "job nobody: unknown" in one_error(capsys, "INVALID_REQUEST")
