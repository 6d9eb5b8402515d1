"""As little of an HTTP client as a load needs: a complete one would take most of the time that is measured."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

MOST_LINE_BYTES = 1 << 20


class HttpConnection:
    """One connection that is kept for the next request (HTTP/1.1)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, base: str) -> None:
        self._reader = reader
        self._writer = writer
        self._base = base

    @classmethod
    async def open(cls, url: str) -> HttpConnection:
        """Connect to the API at this URL."""
        place = urlsplit(url)
        reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=MOST_LINE_BYTES)
        return cls(reader, writer, place.path)

    async def post(self, path: str, body: Any) -> dict[str, str]:
        """Send JSON; gives the headers of the answer, which has to be a 200."""
        text = json.dumps(body).encode()
        head = f"POST {self._base}{path} HTTP/1.1\r\nhost: bench\r\ncontent-length: {len(text)}\r\n\r\n"
        self._writer.write(head.encode() + text)
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        assert status.split(" ")[1] == "200", status
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}

    async def answer(self, path: str, body: Any) -> Any:
        """Send JSON; gives the JSON of the answer."""
        headers = await self.post(path, body)
        return json.loads(await self._reader.readexactly(int(headers["content-length"])))

    async def stream(self, path: str, body: Any) -> AsyncIterator[str]:
        """Send JSON; gives the data of each server-sent event of the answer, but for the last."""
        await self.post(path, body)
        async for data in self.events():
            yield data

    async def events(self) -> AsyncIterator[str]:
        """What `stream` gives, of a request that was sent by `post`."""
        events = ""
        while size := int(await self._reader.readline(), 16):
            events += (await self._reader.readexactly(size + 2))[:-2].decode()
            *whole, events = events.split("\n\n")
            for event in whole:
                data = event.rpartition("data: ")[2]
                if not event.startswith(":") and data != "[DONE]":
                    yield data
        await self._reader.readline()

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        await self._writer.wait_closed()
