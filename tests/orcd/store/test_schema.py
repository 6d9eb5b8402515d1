"""docs/protocol.md is the truth: what it says is compared with what really happens in Redis."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from orcd.client import Client
from orcd.errors import OrcdError
from orcd.monitoring.queue_watch import QueueWatch
from orcd.monitoring.worker_registry import WorkerRegistry
from orcd.store import schema
from orcd.store.job_store import Arrival, JobStore
from tests.orcd.job_record import REQUEST, let_lease_run_out, make_due_again, recorded
from tests.orcd.job_writer import MakeStore, claimed

TTL_S = 600
PROTOCOL = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text(encoding="utf-8")
LUA = Path(schema.__file__).with_name("lua")
SCRIPTS = sorted(path.stem for path in LUA.glob("*.lua") if path.stem != "prelude")
OF_MESSAGES = {"age", "take", "gather", "push", "restore", "adopt", "dead_letter", "retry", "move", "store_result"}
"""Scripts that write lists of messages and results, and nothing of a job."""
OF_GATEWAYS = {"annotate", "batch_adopt", "batch_cancel", "batch_create", "batch_save", "delete"}
"""Scripts that only gateways call."""


@dataclass(frozen=True)
class Row:
    key: str
    type: str
    writers: set[str]
    ttl: str

    def matches(self, key: str) -> bool:
        pattern = re.escape(self.key).replace(re.escape("{J}"), r"\{[^{}]+\}").replace(re.escape("{W}"), r"\{.+\}")
        return re.fullmatch(pattern, key) is not None


def section(title: str) -> str:
    return PROTOCOL.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def cells(title: str) -> list[list[str]]:
    """The rows of a section's table."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")][2:]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]


def table() -> list[Row]:
    """The keys of jobs and workers."""
    return [Row(key, kind, set(re.findall(r"\w+", writers)), ttl) for key, kind, writers, _, ttl in cells("Keys")]


def row_of(key: str) -> Row:
    (row,) = [row for row in table() if row.matches(key)]
    return row


def play_everything(client: Client, store: JobStore, mark: Callable[[str], None] = lambda name: None) -> None:
    """Call every script so that it does all it can do; ``mark`` is told which one was just called."""
    for job_id in ("a", "b", "c", "d", "e", "gone", "new"):
        client.submit(prompt="x", job_id=job_id)
    for job_id in ("late", "later"):
        client.submit(prompt="x", job_id=job_id, deadline_s=0.001, logprobs=0)
    mark("submit")
    store.arrive([Arrival("inline", REQUEST, recorded("inline"))])
    store.arrive([Arrival(job_id, None, recorded(f"canvas-{job_id}")) for job_id in ("a", "gone")])
    mark("arrive")
    first, second, third, fourth, _ = (claimed(store, job_id) for job_id in ("a", "c", "inline", "gone", "new"))
    mark("claim")
    first.start()
    first.tokens(2)
    mark("append")
    store.renew({"a": first.claim.lease})
    mark("renew")
    client.cancel("a")
    client.cancel("b")
    mark("cancel")
    store.arrive([Arrival("e", None, recorded("e"))])
    mark("arrive")
    client.cancel("e")
    mark("cancel")
    first.end()
    mark("append")
    store.arrive([Arrival("a", None, recorded("again"))])
    mark("arrive")
    store.end_damaged("inline", third.claim.lease, OrcdError("it broke"))
    mark("end_damaged")
    client.cancel("gone")
    mark("cancel")
    store.release({"c": second.claim.lease, "gone": fourth.claim.lease})
    mark("release")
    claimed(store, "c")
    mark("claim")
    let_lease_run_out(store, "c")
    make_due_again(store, "d")
    time.sleep(0.002)
    client.status("later")
    store.redis.zrem(schema.QUEUED, "d")
    store.redis.zrem(schema.RUNNING, "c")
    client.statuses(["c", "d"])
    mark("look")
    registry = WorkerRegistry(store.redis)
    registry.beat("worker-1", {"state": "ready"})
    mark("heartbeat")
    registry.tell("worker-1", "drain")
    mark("tell_worker")
    assert client.queues()
    mark("queues")
    assert client.jobs()
    assert client.jobs("cancelled")
    mark("jobs")
    assert client.wait_estimate("d").ahead >= 0
    mark("ahead")
    play_damage(client, store, mark)
    store.redis.hset(schema.job_key("new"), "schema", 5)
    let_lease_run_out(store, "new")
    let_lease_run_out(store, "c")
    make_due_again(store, "d")
    store.reap()
    mark("reap")
    store.announce_loading(50)
    store.limit_queue(100, replaces=True)
    watch = QueueWatch(store.redis, "worker-1")
    while watch.look() is None:
        assert watch.is_counting
    mark("workers")
    claimed(store, "d")
    mark("claim")


def play_damage(client: Client, store: JobStore, mark: Callable[[str], None]) -> None:
    """What becomes of jobs whose records cannot be used."""
    client.submit(prompt="x", job_id="broken")
    client.submit(prompt="x", job_id="broken-2")
    client.submit(prompt="x", job_id="late-2", deadline_s=0.001)
    mark("submit")
    store.arrive([Arrival(job_id, None, recorded(job_id)) for job_id in ("broken", "broken-2", "late-2")])
    mark("arrive")
    for job_id in ("broken", "broken-2"):
        store.redis.hset(schema.job_key(job_id), "attempt", "?")
    store.claim(["broken"])
    mark("claim")
    make_due_again(store, "broken-2")
    time.sleep(0.002)
    client.status("late-2")
    mark("look")
    store.answered({"broken": recorded("broken")})
    mark("answered")


def test_the_tables_name_every_script_and_only_scripts():
    assert {name for name, *_ in cells("Scripts")} == set(SCRIPTS) - OF_MESSAGES - OF_GATEWAYS
    assert {name for name, *_ in cells("Gateways")} >= OF_GATEWAYS
    assert set().union(*(row.writers for row in table())) - {"workers"} <= set(SCRIPTS) - OF_MESSAGES
    writers_of_messages = {word for _, _, writers, _ in cells("Messages") for word in re.findall(r"\w+", writers)}
    assert writers_of_messages == OF_MESSAGES | {"submit"}


def test_every_key_is_in_the_table_with_its_type_and_time_to_live(
    redis_url, connection, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ORCD_QUEUE_LIMIT_S", "1000")
    with Client(redis_url, job_ttl_s=TTL_S) as client:
        play_everything(client, make_store(ttl_s=TTL_S))
    seen = set()
    for name in connection.scan_iter("orcd:*"):
        if connection.type(name) == b"list" or name == schema.EMPTIED.encode():
            continue  # it belongs to messages
        row = row_of(name.decode())
        seen.add(row.key)
        assert connection.type(name).decode() == row.type
        assert connection.ttl(name) > 0
        if row.ttl.startswith("60 s"):
            assert connection.ttl(name) <= 60
        elif row.ttl == "the job's":
            ended = connection.hget(schema.job_key(id_of(name)), "finished_ms") is not None
            assert 0.8 * TTL_S < connection.ttl(name) <= TTL_S or not ended
            assert connection.ttl(name) > 0.8 * (TTL_S + 1000) or ended
    assert seen == {row.key for row in table() if row.type != "channel"}


def id_of(key: bytes) -> str:
    return key.decode().partition("{")[2].partition("}")[0]


def test_every_field_of_a_record_is_told(redis_url, connection, make_store: MakeStore):
    with Client(redis_url) as client:
        play_everything(client, make_store())
        client.submit(prompt="x", tenant="t", traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
    told = set(re.findall(r"`(\w+)`", section("Fields of a record").partition("\nStates:")[0]))
    keys = connection.scan_iter("orcd:*:job")
    assert {field.decode() for key in keys for field in connection.hkeys(key)} == told


ADDS = {"HSET", "HSETNX", "HINCRBY", "ZADD", "XADD", "PUBLISH", "SET"}


def test_every_key_is_written_by_whom_the_table_says(redis_url, connection, make_store: MakeStore):
    writers: dict[str, set[str]] = {row.key: set() for row in table()}
    with Client(redis_url) as client, redis.Redis.from_url(redis_url) as spy, spy.monitor() as monitor:

        def mark(name: str) -> None:
            connection.echo("mark")
            while (seen := monitor.next_command())["command"] != "ECHO mark":
                command, key = [*seen["command"].split(" "), ""][:2]
                by_script = seen["client_type"] == "lua"
                of_a_job = key.startswith("orcd:") and not key.startswith((schema.WAKE, schema.EMPTIED, "orcd:5"))
                if command in ADDS and of_a_job and by_script == (name != "workers"):
                    writers[row_of(key).key].add(name)

        play_everything(client, make_store(), mark)
    assert writers == {row.key: row.writers for row in table()}


def test_the_functions_build_the_keys_of_the_table():
    keys = [schema.job_key("J"), schema.log_key("J"), schema.messages_key("J"), schema.events_channel("J")]
    keys += [schema.QUEUED, schema.RUNNING, schema.UNANSWERED, schema.SERVED, schema.READY, schema.CONTACT]
    keys += [schema.CONTROL, schema.MAX_QUEUED, schema.COUNTING, schema.QUEUE_FIGURES]
    assert sorted([*keys, schema.WORKERS, schema.worker_key("W")]) == sorted(row.key for row in table())


def test_terminal_states_are_states():
    assert set(schema.STATES) > schema.TERMINAL_STATES == {"succeeded", "failed", "cancelled", "expired"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_what_it_takes_and_gives(name: str):
    header = " ".join(line for line in own_text(name).splitlines() if line.startswith("--"))
    for word in ("KEYS: ", "ARGV: "):
        assert word in header, f"{name}.lua does not tell its {word.strip(': ')}"


def own_text(name: str) -> str:
    """A script without the prelude."""
    return (LUA / f"{name}.lua").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_has_in_front_what_it_uses_of_the_prelude_and_no_more(name: str):
    text = schema.script(name, "a:")
    assert text.startswith("local prefix = 'a:'\n")
    assert text.endswith(own_text(name))
    prelude = dict(re.findall(r"^(local function (\w+)\((?:.*\n)+?^end\n)", own_text("prelude"), re.MULTILINE))
    for definition, function in prelude.items():
        uses = re.findall(rf"\b{function}\b", text.replace(definition, ""))
        assert (definition in text) == bool(uses), function
    order = [function for function in prelude.values() if f"local function {function}(" in text]
    assert order == [each for each in re.findall(r"^local function (\w+)", text, re.MULTILINE) if each in order]


@pytest.mark.parametrize("name", sorted(OF_MESSAGES))
def test_a_script_about_messages_is_sent_without_the_prelude_as_it_uses_nothing_of_it(name: str):
    assert schema.celery_script(name) == own_text(name)
    for function in re.findall(r"^local function (\w+)", own_text("prelude"), re.MULTILINE):
        assert not re.search(rf"(?<!\w){function}\(", own_text(name))


def test_the_prelude_only_defines_functions():
    lines = [line for line in own_text("prelude").splitlines() if line and not line.startswith((" ", "--"))]
    assert all(line.startswith("local function ") or line == "end" for line in lines)


def test_what_the_prelude_defines_is_written_nowhere_else_and_used():
    scripts = {name: own_text(name) for name in SCRIPTS if name not in OF_MESSAGES}
    for name, text in scripts.items():
        for repeated in ("'TIME'", "orcd:", "'events'", "'TTL'"):
            assert repeated not in text, f"{name}.lua does by itself what the prelude has a function for"
    prelude = own_text("prelude")
    for function in re.findall(r"^local function (\w+)", prelude, re.MULTILINE):
        uses = sum(len(re.findall(rf"\b{function}[(,]", text)) for text in (prelude, *scripts.values()))
        assert uses >= 3, f"{function} is used once only"
