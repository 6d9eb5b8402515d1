"""A TCP proxy between workers, clients and Redis: it keeps one address, may be slow, and cuts or moves connections.

``python -m tests.chaos.system.tcp_proxy PORT`` listens on that port of the loopback interface and reads commands from
standard input, a JSON object a line; it answers each with whether a client has sent the trigger that it was told.
`TcpProxy` runs it as a process of its own, as copying bytes for all others takes time from whoever shares an
interpreter with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

READ_BYTES = 1 << 16


@dataclass(slots=True)
class _Proxy:
    """``upstream`` is the port that new connections are passed on to; ``delay_s`` is added to every read.

    When a client sends ``trigger``, the proxy obeys the command ``then``.
    """

    port: int
    upstream: int = 0
    delay_s: float = 0.0
    flowing: asyncio.Event = field(default_factory=asyncio.Event)
    trigger: bytes = b""
    then: dict[str, Any] = field(default_factory=dict)
    is_triggered: bool = False
    server: asyncio.Server | None = None
    connections: dict[asyncio.StreamWriter, int] = field(default_factory=dict)

    async def run(self) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            await self._obey(**json.loads(line))
            print(json.dumps(self.is_triggered), flush=True)

    async def _obey(
        self,
        listen: bool | None = None,
        upstream: int | None = None,
        delay_s: float | None = None,
        cut: str = "",
        freeze: bool | None = None,
        trigger: str | None = None,
        then: dict[str, Any] | None = None,
    ) -> None:
        if freeze is not None:
            (self.flowing.clear if freeze else self.flowing.set)()
        if trigger is not None and then is not None:
            self.trigger, self.then, self.is_triggered = trigger.encode(), then, False
        self.upstream = self.upstream if upstream is None else upstream
        self.delay_s = self.delay_s if delay_s is None else delay_s
        if listen and self.server is None:
            self.server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=4096)
        elif listen is False and self.server is not None:
            self.server.close()
            self.server = None
        for writer, port in list(self.connections.items()):
            if cut == "all" or (cut == "moved" and port != self.upstream):
                writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = self.upstream
        self.connections[writer] = port
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.transport.abort()
            del self.connections[writer]
            return
        copies = [
            asyncio.create_task(self._copy(reader, server_writer, is_from_client=True)),
            asyncio.create_task(self._copy(server_reader, writer, is_from_client=False)),
        ]
        try:
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for copy in copies:
                copy.cancel()
            del self.connections[writer]
            for end in (writer, server_writer):
                end.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_from_client: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(READ_BYTES):
                if is_from_client and self.trigger and self.trigger in data:
                    self.trigger, self.is_triggered = b"", True
                    await self._obey(**self.then)
                await self.flowing.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()


class TcpProxy:
    """The process; use it in a with block."""

    def __init__(self, port: int, upstream: int) -> None:
        self.port = port
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.system.tcp_proxy", str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the harness
        )
        self.tell(upstream=upstream, listen=True, freeze=False)

    def tell(self, **command: Any) -> bool:
        """Have it ``listen`` or not, pass new connections on to the port ``upstream``, add ``delay_s`` to each read,
        ``cut`` connections ("all", or those that were "moved" from), ``freeze``: pass nothing on and keep connections;
        or do such a thing ``then``, when a client sends the text ``trigger``. Returns whether one has."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the proxy has died"
        return bool(json.loads(answer))

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            self._process.kill()


if __name__ == "__main__":
    asyncio.run(_Proxy(int(sys.argv[1])).run())
