"""The schema's docstring is the truth: what it says is compared with what really happens in Redis."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from orcd.client import Client
from orcd.store import schema
from orcd.store.job_store import JobStore
from tasks.dispatch.maintenance import Maintenance
from tests.orcd.job_writer import MakeStore, claimed
from worker.settings import Settings

TTL_S = 600
LUA = Path(schema.__file__).with_name("lua")
SCRIPTS = sorted(path.stem for path in LUA.glob("*.lua") if path.stem != "prelude")
CELERYS = {"take", "store_result"}


@dataclass(frozen=True)
class Row:
    key: str
    type: str
    writers: set[str]
    ttl: str

    def matches(self, key: str) -> bool:
        pattern = re.escape(self.key).replace(re.escape("{J}"), r"\{[^{}]+\}").replace(re.escape("{NAME}"), r"\{.+\}")
        return re.fullmatch(pattern, key) is not None


def table() -> list[Row]:
    """The rows of the docstring's table; a line without a key continues the row before."""
    lines = schema.__doc__.splitlines()
    rules = [index for index, line in enumerate(lines) if line.startswith("====")]
    columns = [(match.start(), match.end()) for match in re.finditer("=+", lines[rules[0]])]
    columns[-1] = (columns[-1][0], 200)
    rows: list[list[str]] = []
    for line in lines[rules[1] + 1 : rules[2]]:
        cells = [line[start:end].strip() for start, end in columns]
        if cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [f"{above} {cell}".strip() for above, cell in zip(rows[-1], cells, strict=True)]
    return [Row(key, kind, set(re.findall(r"\w+", writers)), ttl) for key, kind, writers, _, ttl in rows]


def row_of(key: str) -> Row:
    (row,) = [row for row in table() if row.matches(key)]
    return row


def play_everything(client: Client, store: JobStore, mark: Callable[[str], None] = lambda name: None) -> None:
    """Call every script so that it does all it can do; ``mark`` is told which one was just called."""
    for job_id in ("a", "b", "c", "d"):
        client.submit(prompt="x", job_id=job_id)
    client.submit(prompt="x", job_id="late", deadline_s=0.001)
    mark("submit")
    first, second = claimed(store, "a"), claimed(store, "c")
    mark("claim")
    first.start()
    first.tokens(2)
    mark("append")
    store.renew({"a": first.claim.epoch})
    mark("renew")
    client.cancel("a")
    client.cancel("b")
    mark("cancel")
    first.end()
    mark("append")
    store.release({"c": second.claim.epoch})
    mark("release")
    claimed(store, "c")
    mark("claim")
    store.redis.zadd(schema.RUNNING, {"c": 1})
    store.redis.zadd(schema.QUEUED, {"d": 1})
    time.sleep(0.002)
    store.reap()
    mark("reap")
    store.announce_loading(50)
    Maintenance(store, Settings(), "worker-1", lambda message: None).run([], {"running": 0})
    mark("workers")
    claimed(store, "d")
    mark("claim")


def test_the_table_names_every_script_and_only_scripts():
    writers = set().union(*(row.writers for row in table()))
    assert writers - {"workers"} == set(SCRIPTS) - CELERYS, "these write Celery's own keys"
    assert CELERYS | {"prelude"} <= set(re.findall(r"``(\w+)``", schema.__doc__))


def test_every_key_is_in_the_table_with_its_type_and_time_to_live(redis_url, connection, make_store: MakeStore):
    with Client(redis_url, job_ttl_s=TTL_S) as client:
        play_everything(client, make_store(ttl_s=TTL_S))
    seen = set()
    for name in connection.scan_iter("orcd:*"):
        row = row_of(name.decode())
        seen.add(row.key)
        assert connection.type(name).decode() == row.type
        assert 0 < connection.ttl(name) <= (60 if row.ttl.startswith("60 s") else TTL_S)
        if row.ttl.startswith("TTL"):
            assert connection.ttl(name) > 60
    assert seen == {row.key for row in table() if row.type != "channel"}


def test_every_field_of_a_record_is_in_the_docstring(redis_url, connection, make_store: MakeStore):
    with Client(redis_url) as client:
        play_everything(client, make_store())
    (paragraph,) = re.findall(r"Fields of ``orcd:{J}:job``:(.+?)\n\n", schema.__doc__, re.DOTALL)
    told = set(re.findall(r"``(\w+)``", paragraph))
    keys = connection.scan_iter("orcd:*:job")
    assert {field.decode() for key in keys for field in connection.hkeys(key)} == told


ADDS = {"HSET", "HSETNX", "HINCRBY", "ZADD", "XADD", "PUBLISH"}


def test_every_key_is_written_by_whom_the_table_says(redis_url, connection, make_store: MakeStore):
    writers: dict[str, set[str]] = {row.key: set() for row in table()}
    with Client(redis_url) as client, redis.Redis.from_url(redis_url) as spy, spy.monitor() as monitor:

        def mark(name: str) -> None:
            connection.echo("mark")
            while (seen := monitor.next_command())["command"] != "ECHO mark":
                command, key = [*seen["command"].split(" "), ""][:2]
                by_script = seen["client_type"] == "lua"
                if command in ADDS and key.startswith("orcd:") and by_script == (name != "workers"):
                    writers[row_of(key).key].add(name)

        play_everything(client, make_store(), mark)
    assert writers == {row.key: row.writers for row in table()}


def test_the_functions_build_the_keys_of_the_table():
    keys = [schema.job_key("J"), schema.log_key("J"), schema.events_channel("J"), schema.worker_key("NAME")]
    keys += [schema.QUEUED, schema.RUNNING, schema.CONTROL, schema.WORKERS]
    assert sorted(keys) == sorted(row.key for row in table())


def test_terminal_states_are_states():
    assert set(schema.STATES) > schema.TERMINAL_STATES == {"succeeded", "failed", "cancelled", "expired"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_what_it_takes_and_gives(name: str):
    header = [line for line in own_text(name).splitlines() if line.startswith("--")]
    for word in ("-- KEYS: ", "-- ARGV: ", "-- Returns "):
        assert any(line.startswith(word) for line in header), f"{name}.lua does not tell its {word.strip('-: ')}"


def own_text(name: str) -> str:
    """A script without the prelude."""
    return (LUA / f"{name}.lua").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_has_the_prelude_in_front(name: str):
    assert schema.script(name) == own_text("prelude") + own_text(name)


@pytest.mark.parametrize("name", sorted(CELERYS))
def test_a_script_of_celery_s_keys_is_sent_without_the_prelude_as_it_uses_nothing_of_it(name: str):
    assert schema.celery_script(name) == own_text(name)
    for function in re.findall(r"^local function (\w+)", own_text("prelude"), re.MULTILINE):
        assert not re.search(rf"\b{function}\(", own_text(name))


def test_the_prelude_only_defines_functions():
    lines = [line for line in own_text("prelude").splitlines() if line and not line.startswith((" ", "--"))]
    assert all(line.startswith("local function ") or line == "end" for line in lines)


def test_what_the_prelude_defines_is_written_nowhere_else_and_used():
    scripts = {name: own_text(name) for name in SCRIPTS}
    for name, text in scripts.items():
        for repeated in ("'TIME'", "'orcd:{'", ":events'", "'TTL'"):
            assert repeated not in text, f"{name}.lua does by itself what the prelude has a function for"
    prelude = own_text("prelude")
    for function in re.findall(r"^local function (\w+)", prelude, re.MULTILINE):
        uses = sum(len(re.findall(rf"\b{function}\(", text)) for text in (prelude, *scripts.values()))
        assert uses >= 3, f"{function} is used once only"
