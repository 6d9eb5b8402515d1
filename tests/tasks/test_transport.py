"""What the transport relies on in kombu, and what it changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tasks.app import create_app
from tasks.transport import Transport
from worker.settings import Settings


@pytest.fixture
def channel(redis_url: str) -> Iterator[Any]:
    with create_app(Settings(redis_url=redis_url)).connection_for_write() as connection:
        assert isinstance(connection.transport, Transport)
        yield connection.default_channel


def test_a_channel_keeps_one_client_for_its_commands(channel: Any) -> None:
    with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
        assert first is second
        assert first.ping()


def test_a_new_pool_of_connections_gets_a_new_client(channel: Any) -> None:
    with channel.conn_or_acquire() as first:
        channel._disconnect_pools()
    with channel.conn_or_acquire() as second:
        assert second is not first
        assert second.ping()


def test_the_client_that_blocks_for_messages_is_one_of_its_own(channel: Any) -> None:
    with channel.conn_or_acquire() as kept:
        assert channel.client is not kept
        assert channel.subclient is not channel.client


def test_the_connection_is_still_shown_as_redis() -> None:  # Flower goes by that
    with create_app(Settings(redis_url="redis://:secret@redis:6379/1")).connection_for_write() as connection:
        assert connection.as_uri() == "redis://:**@redis:6379/1"
