"""Real Redis servers of the kinds that ``ORCD_REDIS_URL`` can name, as tests start them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis

from orcd.errors import RedisUnavailable
from tasks.local import redis_server
from tasks.local.redis_server import RedisServer

MASTER = "main"
FAILOVER_MS = 60_000
"""Silence of a master after which its sentinels look for another, for a test that waits for none."""


class ConfiguredServer(RedisServer):
    """A server with options of its own; tests talk to it on its TCP port beside what the options open."""

    def __init__(self, **options: str) -> None:
        self._options = options
        super().__init__()

    @property
    def port(self) -> int:
        return self._port

    def _command(self, port: int) -> list[str]:
        options = [
            word for name, value in self._options.items() for word in ("--" + name.replace("_", "-"), *value.split(" "))
        ]
        return [*super()._command(port), *options]


@contextmanager
def standing_still(server: RedisServer) -> Iterator[None]:
    """Connections are cut, and new ones are opened by the kernel, but the server says nothing."""
    with redis.Redis.from_url(server.url) as connection:
        process = connection.info("server")["process_id"]
        connection.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        connection.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


class Certificates:
    """A certification authority in a folder, and what it signed for 127.0.0.1: of a server, and of a client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._program = shutil.which("openssl") or pytest.skip("needs openssl, which makes the certificates")
        self.authority = folder / "ca.crt"
        self._openssl("req", "-x509", *self._key("ca"), "-subj", "/CN=test", "-days", "2", "-out", "ca.crt")
        self.server = self._sign("server")
        self.client = self._sign("client")

    def _sign(self, name: str) -> tuple[Path, Path]:
        """Certificate and key."""
        self._openssl("req", *self._key(name), "-subj", f"/CN={name}", "-out", f"{name}.csr")
        (self.folder / "names").write_text("subjectAltName=IP:127.0.0.1")
        authority = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        self._openssl("x509", "-req", "-in", f"{name}.csr", *authority, "-out", f"{name}.crt")
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"

    @staticmethod
    def _key(name: str) -> tuple[str, ...]:
        return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")

    def _openssl(self, *arguments: str) -> None:
        subprocess.run([self._program, *arguments], cwd=self.folder, check=True, capture_output=True)


def tls_server(certificates: Certificates, port: int) -> ConfiguredServer:
    """A server that speaks TLS on ``port`` and wants certificates of its clients; skips the test if none can."""
    certificate, key = map(str, certificates.server)
    try:
        return ConfiguredServer(
            tls_port=str(port),
            tls_cert_file=certificate,
            tls_key_file=key,
            tls_ca_cert_file=str(certificates.authority),
        )
    except RedisUnavailable as error:
        pytest.skip(f"needs a redis-server built with TLS, such as Debian's: {error}")


@contextmanager
def sentinels(master_port: int, folder: Path, password: str = "", count: int = 3) -> Iterator[list[int]]:
    """So many sentinels that watch the server on ``master_port`` under the name `MASTER`; yields their ports."""
    ports = [redis_server.free_port() for _ in range(count)]
    processes = []
    try:
        for port in ports:
            config = folder / f"sentinel-{port}.conf"
            lines = [
                f"port {port}",
                "bind 127.0.0.1",
                f"dir {folder}",
                f"sentinel monitor {MASTER} 127.0.0.1 {master_port} 2",
                f"sentinel down-after-milliseconds {MASTER} {FAILOVER_MS}",
                f"sentinel failover-timeout {MASTER} 5000",
                f'sentinel auth-pass {MASTER} "{password}"' if password else "",
            ]
            config.write_text("\n".join(lines) + "\n")
            command = [redis_server._executable(), str(config), "--sentinel"]
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT))
        _wait_until_they_agree(ports)
        yield ports
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _wait_until_they_agree(ports: list[int]) -> None:
    """Wait until each sentinel knows the others and a replica that can take over."""
    deadline = time.monotonic() + 60
    for port in ports:
        with redis.Redis(port=port, socket_timeout=60) as sentinel:
            while not _knows_all(sentinel, len(ports) - 1):
                assert time.monotonic() < deadline, "the sentinels do not find each other"
                time.sleep(0.05)


def _knows_all(sentinel: redis.Redis, num_others: int) -> bool:
    with suppress(redis.RedisError):
        state = sentinel.sentinel_master(MASTER)
        return state["num-other-sentinels"] == num_others and state["num-slaves"] >= 1
    return False
