"""What clients say when Redis is not as it should be."""

from __future__ import annotations

import pytest
import redis

from tasks.connection import RedisUnavailable, connect, publishing_app, redis_errors
from worker.errors import BY_CODE, InvalidRequest, OrcdError
from worker.settings import Settings

SETTINGS = Settings(redis_url="redis://:secret@redis:6379/0")


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


def test_it_is_retriable_but_no_code_of_its_own():
    assert RedisUnavailable.retriable
    assert BY_CODE[RedisUnavailable.code] is OrcdError


@pytest.mark.parametrize("url", ["", "localhost", "http://redis", "redis://redis:port/0"])
def test_a_url_that_is_none_is_refused(url: str):
    with pytest.raises(InvalidRequest, match="redis_url: must look like redis://HOST:PORT/DB"):
        connect(redis.Redis.from_url, Settings(redis_url=url), None)


def test_the_sending_app_keeps_no_results():
    assert publishing_app(SETTINGS).backend.as_uri() == "disabled://"
