"""The Redis of a fault test: one address, and behind it a server that may die, forget or be replaced."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import redis

from tasks.local.redis_server import RedisServer
from tests.chaos.system.tcp_proxy import TcpProxy

SYNC_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class LogEnd:
    """A place in an append-only file, in bytes."""

    path: Path
    size: int


class RedisService:
    """A server with an append-only file behind a proxy. ``url`` is for workers and clients and never changes; the
    harness itself speaks to the server directly. Use it on the main thread, in a with block."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """``environment`` is added to that of every server."""
        self._environment = environment
        self._server = self._new_server()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.proxy = TcpProxy(port, _port(self._server))
        self.url = f"redis://127.0.0.1:{port}/0"
        self._keep_log()

    def __enter__(self) -> RedisService:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.proxy:
            self._server.stop()

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """A connection of the harness to the server that is in use now."""
        with _connection(self._server) as connection:
            yield connection

    def kill(self) -> None:
        """SIGKILL. What was acknowledged is in the append-only file."""
        self.proxy.tell(listen=False)
        self._server.kill()
        self.proxy.tell(cut="all")

    def start(self) -> None:
        """Bring it back."""
        with self._added_environment():
            self._server.start()
        self.proxy.tell(listen=True)
        self._wait_until_loaded()
        self._keep_log()

    def log_end(self) -> LogEnd:
        """Where the append-only file ends: all that was acknowledged is within."""
        path = self._log_file()
        return LogEnd(path, path.stat().st_size)

    def cut_log(self, end: LogEnd) -> None:
        """Of a killed server: forget all that was written after the file had that end, as a power loss would."""
        assert self._log_file() == end.path, "the append-only file was written anew; nobody knows what to cut"
        with end.path.open("r+b") as file:
            file.truncate(end.size)

    def start_replica(self) -> RedisServer:
        """A second server that holds what the first one holds."""
        with self.connection() as connection:
            connection.config_set("repl-diskless-sync-delay", 0)  # no other replica will come
        replica = self._new_server()
        with _connection(replica) as connection:
            connection.replicaof("127.0.0.1", _port(self._server))
            end = time.monotonic() + SYNC_TIMEOUT_S
            while not _is_synchronised(connection):
                assert time.monotonic() < end, "the replica does not catch up"
                time.sleep(0.02)
        return replica

    def fail_over(self, replica: RedisServer, connections_stay_s: float) -> None:
        """Promote a replica that lacks nothing. The old server becomes its replica, and connections that were made
        before stay with that for so many seconds."""
        old = self._server
        with _connection(old) as demoted, _connection(replica) as promoted:
            demoted.client_pause(60_000, all=False)  # writes only
            _wait_for_offset(promoted, demoted.info("replication")["master_repl_offset"])
            self._promote(replica)
            demoted.replicaof("127.0.0.1", _port(replica))
            demoted.client_unpause()
        time.sleep(connections_stay_s)
        self.proxy.tell(cut="moved")
        old.stop()

    def promote_lagging(self, replica: RedisServer, lag_s: float) -> float:
        """Promote a replica that does not know what was written in the last ``lag_s`` seconds, as its master is gone.

        Returns since when that is, on the clock of `time.monotonic`.
        """
        old = self._server
        since = time.monotonic()
        with _connection(old) as master, _connection(replica) as promoted:
            _wait_for_offset(promoted, master.info("replication")["master_repl_offset"])
            promoted.replicaof("NO", "ONE")
        time.sleep(lag_s)
        self.proxy.tell(listen=False)
        old.kill()
        self.proxy.tell(cut="all")
        self._promote(replica)
        self.proxy.tell(listen=True)
        old.stop()
        return since

    @contextmanager
    def broken_snapshots(self) -> Iterator[None]:
        """A disk that takes no snapshot: Redis then refuses to write (MISCONF)."""
        with self.connection() as connection:
            target = Path(connection.config_get("dir")["dir"], connection.config_get("dbfilename")["dbfilename"])
            target.unlink(missing_ok=True)  # of an earlier replica; nobody reads it where there is an append-only file
            (target / "in the way").mkdir(parents=True)
            connection.config_set("save", "3600 1")
            self._save(connection, "err")
        yield
        with self.connection() as connection:
            shutil.rmtree(target)
            self._save(connection, "ok")
            connection.config_set("save", "")

    def _new_server(self) -> RedisServer:
        with self._added_environment():
            return RedisServer(appendonly=True)

    @contextmanager
    def _added_environment(self) -> Iterator[None]:
        """Servers inherit the harness's environment; nothing else is started meanwhile."""
        os.environ.update(self._environment)
        try:
            yield
        finally:
            for name in self._environment:
                del os.environ[name]

    def _wait_until_loaded(self) -> None:
        """Until then it answers that it is busy, to everybody."""
        with self.connection() as connection:
            end = time.monotonic() + SYNC_TIMEOUT_S
            while connection.info("persistence")["loading"]:
                assert time.monotonic() < end, "Redis does not read its append-only file in time"
                time.sleep(0.01)

    def _save(self, connection: Any, expected: str) -> None:
        end = time.monotonic() + SYNC_TIMEOUT_S
        while (status := connection.info("persistence"))["rdb_last_bgsave_status"] != expected:
            assert time.monotonic() < end, f"a snapshot does not end with {expected}"
            if not status["rdb_bgsave_in_progress"]:
                with suppress(redis.ResponseError):
                    connection.bgsave()
            time.sleep(0.05)

    def _promote(self, replica: RedisServer) -> None:
        with _connection(replica) as promoted:
            promoted.replicaof("NO", "ONE")
        self._server = replica
        self._keep_log()
        self.proxy.tell(upstream=_port(replica))

    def _keep_log(self) -> None:
        """No rewriting of the append-only file: `log_end` must mean the same later."""
        with self.connection() as connection:
            connection.config_set("auto-aof-rewrite-percentage", 0)
            self._folder = Path(connection.config_get("dir")["dir"])

    def _log_file(self) -> Path:
        return max(self._folder.rglob("*.aof"), key=lambda path: (".incr." in path.name, len(path.name), path.name))


def _port(server: RedisServer) -> int:
    return int(server.url.rpartition(":")[2].partition("/")[0])


def _connection(server: RedisServer) -> Any:
    return redis.Redis.from_url(server.url, socket_timeout=30)


def _is_synchronised(replica: Any) -> bool:
    """Whether a replica has all of its master, in its append-only file too: until that is written anew, a SIGKILL would
    lose all that came since. One answer must say both: the file is begun at the moment when the link is up."""
    status = replica.info()
    is_writing = status["aof_rewrite_in_progress"] or status["aof_rewrite_scheduled"]
    return status.get("master_link_status") == "up" and not is_writing


def _wait_for_offset(replica: Any, offset: int) -> None:
    """Wait until a replica knows all that its master had written by then."""
    end = time.monotonic() + SYNC_TIMEOUT_S
    while replica.info("replication")["slave_repl_offset"] < offset:
        assert time.monotonic() < end, "the replica does not catch up"
        time.sleep(0.01)
