"""Celery's Redis result backend, less some of its work for each result, as each job has one, and with more patience.

It looks at the stored result before it writes one, which takes a second round trip, and encodes with Python's json. And
Celery's tracer takes a result that cannot be stored, as Redis is away, for a failure of its task: that is what it would
store once Redis is back, and tell those who wait for the task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import celery.backends.redis
import msgspec
import redis
from celery import states
from celery.exceptions import Reject
from redis.backoff import ExponentialBackoff

from orcd.result import Result
from orcd.store import schema
from orcd.store.commands.timed_redis import RetryIf
from orcd.store.redis_address import RedisAddress
from orcd.store.redis_connection import is_out_of_order, make_pool
from tasks.dispatch.delivery import Repeated
from tasks.dispatch.engine.reported_logprobs import ReportedLogprobs

LONGEST_PAUSE_S = 1.0
MAX_HELD_BYTES = 256 * 1024
"""A larger result is not held for others: a round trip is little of the time it takes, and many would take memory."""
SEND_BYTES = 1 << 20
"""What is sent together goes to the kernel in parts of so much, as each costs a turn of the interpreter."""


class NotStored(Reject):  # type: ignore[misc]
    """Redis is away, and the worker waits for it no longer. The tracer lets this kind of error pass."""


def is_away(error: Exception) -> bool:
    """Whether the command could succeed later: Redis is out of reach, or refuses all commands of this kind."""
    if isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError):
        return True
    return isinstance(error, redis.RedisError) and is_out_of_order(error)


class RetryWhile(RetryIf):
    """Tries a command again for as long as Redis is away and ``is_waiting()``."""

    def __init__(self, is_waiting: Callable[[], bool]) -> None:
        super().__init__(ExponentialBackoff(cap=LONGEST_PAUSE_S, base=0.02), -1, (redis.RedisError, OSError))
        self._is_waiting = is_waiting

    def __deepcopy__(self, _: Any) -> RetryWhile:  # redis-py makes a copy for each connection
        return self

    def condition(self) -> Callable[[Exception], bool]:
        """Whether Redis is away and somebody waits."""
        return lambda error: self._is_waiting() and is_away(error)


class ResultBackend(celery.backends.redis.RedisBackend):  # type: ignore[misc]
    """Stores what its base class stores; here Redis itself looks whether there is a success already.

    Each thread has a backend of its own. One that sets ``is_waiting`` waits in it for a Redis that is away.
    """

    is_waiting: Callable[[], bool] | None = None
    _together: dict[str, bytes] | None = None

    @contextmanager
    def together(self, outcomes: Iterable[object] = ()) -> Iterator[list[Exception]]:
        """The successes that are stored within reach Redis at the end, in one round trip; ``outcomes`` are among them.

        Yields what then has the errors of those that cannot be stored. Raises `NotStored` where it has waited in vain.
        """
        failures: list[Exception] = []
        together: dict[str, bytes] = {}
        results = [each.result if isinstance(each, Repeated) else each for each in outcomes]
        choices = [choice for result in results if isinstance(result, Result) for choice in result.choices]
        ReportedLogprobs.make_json([each.logprobs for each in choices if isinstance(each.logprobs, ReportedLogprobs)])
        self._together = together
        try:
            yield failures
            if together:
                failures += self._or_leave(self._store_together, together)
        finally:
            self._together = None

    def store_result(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class. Raises `NotStored` where it has waited in vain."""
        return self._or_leave(super().store_result, *args, **kwargs)

    def get_task_meta(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class. Raises `NotStored` where it has waited in vain."""
        return self._or_leave(super().get_task_meta, *args, **kwargs)

    def on_chord_part_return(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class. Raises `NotStored` where it has waited in vain."""
        return self._or_leave(super().on_chord_part_return, *args, **kwargs)

    def _or_leave(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return work(*args, **kwargs)
        except (redis.RedisError, OSError) as error:
            if self.is_waiting is None or not is_away(error):
                raise
            raise NotStored(type(error).__name__) from None

    def as_uri(self, *_: Any, **__: Any) -> str:
        """The address, without the password."""
        return str(self._address)

    @property
    def _address(self) -> RedisAddress:
        address: RedisAddress = self.app.conf.broker_transport_options["address"]
        return address

    def _get_pool(self, **params: Any) -> Any:
        # The base class knows fewer kinds of addresses.
        retry = RetryWhile(lambda: self.is_waiting is not None and self.is_waiting())
        pool = make_pool(self._address, retry=retry, socket_timeout=params["socket_timeout"])
        pool.connection_kwargs["redis_connect_func"] = partial(_greet, pool.connection_kwargs["redis_connect_func"])
        return pool

    def ensure(self, fun: Any, args: Any, **policy: Any) -> Any:
        """As the base class, where the client itself does not wait."""
        if self.is_waiting is not None:
            return fun(*args)
        return super().ensure(fun, args, **policy)

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **_: Any
    ) -> Any:
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = task_id
        key = self.get_key_for_task(task_id)
        if state == states.SUCCESS:
            # What a task of ours returns is made of structs; exceptions may hold what only kombu's encoder knows.
            text = msgspec.json.encode(meta, enc_hook=in_json)
            may_be_read = request and (request.group or request.chord)  # by the next task
            if self._together is None or may_be_read or len(text) > MAX_HELD_BYTES:
                self.ensure(self._store_success, (key, text))
            else:
                self._together.setdefault(key, text)
        else:
            self.ensure(self._store_with_care, (key, self.encode(meta)))
        return result

    def _store_success(self, key: str, text: bytes) -> None:
        # Nearly always nothing is stored yet, and a script takes several times as long for the bytes of a large result.
        if not self.client.set(key, text, ex=self.expires, nx=True):
            self._store_with_care(key, text)
        # Who waits may hear of it twice, rather than never where a worker has stored it and then died.
        self.client.publish(key, text)

    def _store_together(self, together: dict[str, bytes]) -> list[Exception]:
        """What `_store_success` does, for many; returns the errors of those that cannot be stored."""
        stored: list[Any] = [None] * len(together)
        try:
            with self.client.pipeline(transaction=False) as pipeline:
                for key, text in together.items():
                    pipeline.set(key, text, ex=self.expires, nx=True)
                    pipeline.publish(key, text)
                stored = pipeline.execute()[::2]
        except redis.RedisError as error:
            if is_away(error):
                raise
        failures: list[Exception] = []
        for (key, text), is_stored in zip(together.items(), stored, strict=True):
            try:
                if not is_stored:
                    self._store_with_care(key, text)
            except redis.RedisError as error:  # the key is of a wrong type
                if is_away(error):
                    raise
                failures.append(error)
        return failures

    def _store_with_care(self, key: str, text: bytes | str) -> None:
        # As text: it is rare, and a script that was loaded may be unknown to the server that has taken over since.
        self.client.eval(schema.celery_script("store_result"), 1, key, text, self.expires)


def _greet(greet: Callable[[Any], None], connection: Any) -> None:
    """As on any other connection, which then sends large parts."""
    connection._buffer_cutoff = SEND_BYTES
    greet(connection)


def in_json(value: Any) -> Any:
    """What msgspec shall write for a value that it does not know. Raises TypeError if that is none of ours."""
    if isinstance(value, ReportedLogprobs):
        return value.json()
    raise TypeError(f"a result holds a {type(value).__name__}")
