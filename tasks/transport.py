"""Kombu's Redis transport, less the client object that it makes anew for every command.

redis-py takes 70 us for one, and a job needs four or more: a sixth of what the worker's Celery side costs a job.
"""

from __future__ import annotations

from typing import Any

import celery.app.amqp
import kombu
from kombu.transport import redis


class Channel(redis.Channel):  # type: ignore[misc]
    """Keeps its client as long as its pool of connections; redis-py's clients are thread-safe."""

    _kept_client: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:  # one for the poller and one for broadcasts, which kombu keeps
            return super()._create_client(asynchronous=True)
        if self._kept_client is None or self._kept_client.connection_pool is not self.pool:
            self._kept_client = super()._create_client()
        return self._kept_client


class Transport(redis.Transport):  # type: ignore[misc]
    """Opens these channels."""

    Channel = Channel


class Connection(kombu.Connection):  # type: ignore[misc]
    """A connection whose URL begins with redis:// or rediss://. (``broker_transport`` would show in that URL.)"""

    def get_transport_cls(self) -> type[Transport]:
        """The transport, whatever the URL's scheme."""
        return Transport


class Amqp(celery.app.amqp.AMQP):  # type: ignore[misc]
    """What an app's connections are made by."""

    Connection = Connection
