"""``orcd queue``, ``orcd dead`` and ``orcd migrate`` as a person runs them."""

from __future__ import annotations

import json
import re
import shlex
import time

import pytest
import redis

from orcd.client import Client
from orcd.monitoring.worker_registry import WorkerRegistry
from orcd.store import schema
from tests.orcd.cli.command_line import one_error, run
from tests.orcd.cli.test_migration import message

NOWHERE = "redis://127.0.0.1:1/0"
LETTER = "1767225600000-0"
TEXT = b'{"body": "\xff secret"}'


@pytest.fixture(autouse=True)
def two_letters(redis_url: str, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCD_REDIS_URL", redis_url)
    fields = {"reason": "it is not JSON in UTF-8", "list": "orcd:5", "num_bytes": len(TEXT), "text": TEXT}
    connection.xadd(schema.DEAD, fields, LETTER)
    connection.xadd(schema.DEAD, fields | {"num_bytes": 70_000, "id": "job-1"}, "1767225601000-0")


def test_list_prints_a_line_for_each_without_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dead", "list"]) == 0
    output = capsys.readouterr().out
    assert output.splitlines() == [
        f"{LETTER}  2026-01-01T00:00:00+00:00  orcd:5  20  -  it is not JSON in UTF-8",
        "1767225601000-0  2026-01-01T00:00:01+00:00  orcd:5  70000  job-1  it is not JSON in UTF-8",
    ]
    assert "secret" not in output


def test_list_as_json_prints_an_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dead", "list", "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {"id": LETTER, "at_ms": 1767225600000, "list_name": "orcd:5", "reason": "it is not JSON in UTF-8",
                     "num_bytes": 20, "num_kept_bytes": 20, "message_id": ""}  # fmt: skip
    assert second["message_id"] == "job-1"


def test_show_tells_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dead", "show", LETTER]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines == {"id": LETTER, "at": "2026-01-01T00:00:00+00:00", "list_name": "orcd:5",
                     "reason": "it is not JSON in UTF-8", "num_bytes": "20", "num_kept_bytes": "20",
                     "message_id": "-"}  # fmt: skip
    assert run(["dead", "show", LETTER, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == LETTER


def test_the_bytes_are_printed_only_when_they_are_asked_for(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(["dead", "show", LETTER, "--raw"]) == 0
    assert capfdbinary.readouterr().out == TEXT


def test_retry_sends_one_again(connection: redis.Redis, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dead", "retry", LETTER]) == 0
    assert capsys.readouterr().out == f"{LETTER} sent to orcd:5\n"
    assert connection.lrange("orcd:5", 0, -1) == [TEXT]


def test_retry_sends_all_that_are_whole_and_says_which_are_not(
    connection: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["dead", "retry", "--all", "--queue", "celery"]) == 1
    output, errors = capsys.readouterr()
    assert output == f"{LETTER} sent to celery\n"
    assert errors == "dead letter 1767225601000-0: only the beginning of the message was kept; drop it\n"
    assert connection.xlen(schema.DEAD) == 1


def test_drop_deletes_one_or_all(connection: redis.Redis, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dead", "drop", LETTER]) == 0
    assert connection.xlen(schema.DEAD) == 1
    assert run(["dead", "drop", "--all"]) == 0
    assert connection.xlen(schema.DEAD) == 0
    assert capsys.readouterr().out == f"{LETTER} dropped\n1767225601000-0 dropped\n"


def test_an_entry_that_cannot_be_read_does_not_hide_the_others(
    connection: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    connection.xadd(schema.DEAD, {"something": "else"})
    assert run(["dead", "list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert run(["dead", "retry", "--all"]) == 1
    assert run(["dead", "drop", "--all"]) == 0


@pytest.mark.parametrize(
    "line",
    [
        "dead retry",
        "dead drop",
        f"dead retry {LETTER} --all",
        "dead show",
        "dead show nonsense",
        "dead show 5-5",
        "dead retry 5-5",
        "dead retry 1767225601000-0",
        "dead drop 5-5",
        "dead lsit",
        "queue orcd",
        "dead",
        "migrate --redis nonsense",
        "migrate everything",
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shlex.split(line)) == 2
    one_error(capsys, "INVALID_REQUEST")


def test_queue_prints_a_line_for_each_and_marks_those_that_nobody_serves(
    client: Client, connection: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    WorkerRegistry(connection).beat("w", {"state": "ready", "model": "demo"})
    client.submit_many([{"prompt": "secret", "model": "a:b", "priority": priority} for priority in (9, 2, 9)])
    assert run(["queue"]) == 0
    output = capsys.readouterr().out
    head, *lines = [line.split() for line in output.splitlines()]
    assert " ".join(head) == "QUEUE MODEL WORKERS RUNNING WAITING OLDEST DRAINS MESSAGES WAITING BY PRIORITY"
    oldest = lines[1][5]
    assert lines == [
        ["orcd", "any", "1", "0", "0", "-", "0s", "0", "-"],
        ["orcd.a%3Ab", "a:b", "nobody", "0", "3", oldest, "never", "3", "2:1", "9:2"],
        ["orcd.demo", "demo", "1", "0", "0", "-", "0s", "0", "-"],
    ]
    assert re.fullmatch(r"\d+s", oldest)
    assert "secret" not in output


def test_queue_as_json_prints_an_object_for_each(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    client.submit(prompt="x", model="demo", priority=1)
    assert run(["queue", "--json"]) == 0
    queue = json.loads(capsys.readouterr().out)
    assert queue.pop("oldest_ms") >= 0
    assert queue == {"queue": "orcd.demo", "model": "demo", "workers": 0, "running": 0, "waiting": 1,
                     "priorities": {"1": 1}, "messages": 1, "drain_ms": None}  # fmt: skip


@pytest.mark.parametrize(
    "line", ["queue", "dead list", f"dead show {LETTER}", "dead retry --all", "dead drop 5-5", "migrate"]
)
def test_without_redis_every_command_says_so(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*line.split(), "--redis", NOWHERE]) == 1
    assert one_error(capsys, "REDIS_UNAVAILABLE").startswith("cannot reach Redis at redis://127.0.0.1:1/0; ")


@pytest.mark.parametrize("line", ["queue", "dead", "dead list", "dead show", "dead retry", "dead drop", "migrate"])
def test_every_command_explains_itself(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*line.split(), "--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"Usage: orcd {line} ")
    assert len(page) > 150


def test_migrate_says_what_it_moved(connection: redis.Redis, capsys: pytest.CaptureFixture[str]) -> None:
    connection.lpush("celery:5", message(number=1), message(number=2), message("shop.pay"))
    assert run(["migrate", "--dry-run"]) == 0
    assert capsys.readouterr().out == "2 from celery:5 to orcd:5\n2 messages would be moved\n"
    assert run(["migrate"]) == 0
    assert capsys.readouterr().out == "2 from celery:5 to orcd:5\n2 messages moved\n"
    assert run(["migrate"]) == 0
    assert capsys.readouterr().out == "0 messages moved\n"
    assert (connection.llen("celery:5"), connection.llen("orcd:5")) == (1, 2)


def test_ages_of_jobs_are_those_of_the_clock_of_redis(
    client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client.submit(prompt="x", job_id="waits")
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + 3 * 3600)  # the command's own clock is ahead
    assert run(["jobs"]) == 0
    head, waits = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert re.fullmatch(r"\d+s", waits[head.index("AGE")])


def test_jobs_prints_a_line_for_each(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    client.submit(prompt="x", job_id="waits", model="demo", priority=3)
    client.submit(prompt="x", job_id="gone")
    client.cancel("gone")
    assert run(["jobs"]) == 0
    head, waits = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head == ["JOB", "STATE", "MODEL", "PRIORITY", "AGE", "RAN", "ATTEMPTS", "OUTCOME", "WORKER"]
    age = waits.pop(4)
    assert waits == ["waits", "queued", "demo", "3", "-", "0", "-", "-"]
    assert re.fullmatch(r"\d+s", age)
    assert run(["jobs", "--state", "cancelled", "--json"]) == 0
    gone = json.loads(capsys.readouterr().out)
    assert (gone["job_id"], gone["outcome"], gone["model"]) == ("gone", "CANCELLED", None)


def test_a_state_that_there_is_not_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["jobs", "--state", "waiting"]) == 2
    one_error(capsys, "INVALID_REQUEST")


@pytest.mark.parametrize(
    "line", ["queue", "jobs", "workers", "top --count 1", "dead list", "dead show 1-1", "status job-1"]
)
def test_names_that_anybody_may_choose_move_no_cursor(
    client: Client, connection: redis.Redis, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    """A model's name in a request could clear the screen of whoever looked at the queue."""
    evil = "\x1b[2J\nevil"
    client.submit(prompt="x", model=evil, job_id="job-1")
    WorkerRegistry(connection).beat(evil, {"state": evil, "model": evil, "device": evil})
    fields = {"reason": evil, "list": evil, "num_bytes": 1, "text": "x", "id": evil}
    connection.xadd(schema.DEAD, fields, "1767225602000-0")
    assert run(shlex.split(line.replace("1-1", "1767225602000-0"))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "evil" in "".join(lines)
    assert not [each for each in lines if not each.isprintable() or each.startswith("evil")]
