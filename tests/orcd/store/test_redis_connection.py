"""What clients say when Redis is not as it should be."""

from __future__ import annotations

import pytest
import redis

from orcd.errors import InvalidRequest, RedisUnavailable
from orcd.settings import ClientSettings
from orcd.store.redis_connection import connect, redis_errors, safe_url

SETTINGS = ClientSettings(redis_url="redis://:secret@redis:6379/0")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            redis.ConnectionError("secret"),
            "cannot reach Redis at redis://:**@redis:6379/0; start it or set ORCD_REDIS_URL",
        ),
        (
            redis.TimeoutError("secret"),
            "cannot reach Redis at redis://:**@redis:6379/0; start it or set ORCD_REDIS_URL",
        ),
        (
            redis.AuthenticationError("secret"),
            "Redis at redis://:**@redis:6379/0 refuses the password; set ORCD_REDIS_URL",
        ),
        (redis.ResponseError("ERR 'secret'"), "Redis at redis://:**@redis:6379/0 refused a command: ResponseError"),
        (redis.ReadOnlyError("secret"), "Redis at redis://:**@redis:6379/0 refused a command: ReadOnlyError"),
        (
            redis.ResponseError("-OOM command not allowed when used memory > 'maxmemory'."),
            "Redis at redis://:**@redis:6379/0 is full; raise its maxmemory",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_redis_becomes_one_line_without_secrets(error: redis.RedisError, words: str):
    with pytest.raises(RedisUnavailable) as caught, redis_errors(SETTINGS):
        raise error
    assert caught.value.message == words


def test_other_errors_pass_through():
    with pytest.raises(InvalidRequest), redis_errors(SETTINGS):
        raise InvalidRequest("mine")


def test_it_is_retriable():
    assert RedisUnavailable.retriable


@pytest.mark.parametrize("url", ["", "localhost", "http://redis", "redis://redis:port/0"])
def test_a_url_that_is_none_is_refused(url: str):
    with pytest.raises(InvalidRequest, match="redis_url: must look like redis://HOST:PORT/DB"):
        connect(redis.Redis.from_url, ClientSettings(redis_url=url), None)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://redis:6379/1", "redis://redis:6379/1"),
        ("redis://:secret@redis:6379/1", "redis://:**@redis:6379/1"),
        ("redis://user:secret@redis:6379/1", "redis://user:**@redis:6379/1"),
        ("rediss://user:sec/r@t:2@redis", "rediss://user:**@redis"),
        ("redis://user@redis", "redis://user@redis"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str):
    assert safe_url(url) == shown
