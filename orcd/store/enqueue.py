"""Celery messages: their queues, and how they are sent.

A message only makes a worker look at a job; the job itself is in its record.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from weakref import WeakSet

import msgspec
from redis.exceptions import NoPermissionError, RedisError

from orcd.settings import ClientSettings
from orcd.store.commands.message_template import MessageTemplate
from orcd.store.redis_address import RedisAddress
from orcd.store.redis_connection import has_wrong_type

log = logging.getLogger(__name__)

GENERATE = "orcd.generate"
"""The task of one job."""
RETRY_POLICY = {"max_retries": 2, "interval_start": 0.1, "interval_step": 0.4}
"""How often and after how many seconds a message that could not be sent is sent again."""
MAX_CONNECTIONS = 10
"""Threads of a publisher that can send at once; more wait for each other."""


class RecordedMessage(msgspec.Struct, frozen=True):
    """A Celery message as it is kept beside the record of its job, until it was answered.

    ``kwargs`` name the job (``job_id``, or ``job_ids`` for a chunk) and never hold a prompt. ``headers`` are Celery's,
    with all that canvas, limits and tracing need; ``embed`` has its links, chain and chord.
    """

    task_id: str
    task: str
    queue: str
    priority: int
    headers: dict[str, Any]
    args: list[Any]
    kwargs: dict[str, Any]
    embed: dict[str, Any]

    @classmethod
    def read_all(cls, texts: Sequence[bytes]) -> list[RecordedMessage]:
        """From the JSON that is kept. One that cannot be read is left out, so that others are not lost with it."""
        recorded = []
        for text in texts:
            with suppress(ValueError, RecursionError):
                recorded.append(_recorded.decode(text))
        return recorded

    @property
    def time_limit_s(self) -> float | None:
        """The sooner of Celery's two limits, if the sender gave one."""
        given = self.headers.get("timelimit")
        limits = [limit for limit in given if isinstance(limit, int | float)] if isinstance(given, list) else []
        return min(limits, default=None)


_recorded = msgspec.json.Decoder(RecordedMessage)


@dataclass(frozen=True, slots=True)
class Message:
    """What to publish for a job: the messages recorded for it, and a plain one if none of them goes to ``queue``.

    ``tenant`` is a `tenant_digest`.
    """

    job_id: str
    queue: str
    priority: int
    lease_lost: bool = False
    recorded: tuple[RecordedMessage, ...] = ()
    tenant: str = ""

    @classmethod
    def read_all(cls, replies: Sequence[Any]) -> list[Message]:
        """From what scripts return for each job. What was recorded for many of them, a chunk's, comes once."""
        messages: list[Message] = []
        seen: set[str] = set()
        for job_id, queue, priority, lease_lost, texts, tenant in replies:
            recorded = RecordedMessage.read_all(texts)
            new = tuple(each for each in recorded if each.task_id not in seen)
            seen.update(each.task_id for each in new)
            if new or not recorded:
                name, lost = queue.decode(), lease_lost == 1
                if lease_lost == 2:  # the job has ended, and nobody reads the queue that they came from
                    new = tuple(msgspec.structs.replace(each, queue=name) for each in new)
                messages.append(cls(job_id.decode(), name, int(priority), lost, new, tenant.decode()))
        return messages


def queue_name(model: str | None) -> str:
    """The queue of a model's jobs, or with None of those that any model may run.

    In a model's name all but ``A-Z a-z 0-9 _ . -`` is percent-encoded: kombu gives other characters a meaning.
    """
    return f"orcd.{quote(model, safe='').replace('~', '%7E')}" if model else "orcd"


def tenant_digest(tenant: str | None) -> str:
    """What keeps tenants apart in messages and names of keys, where others read: 16 hex digits; "" for none."""
    return hashlib.sha256(b"orcd:tenant:" + tenant.encode()).hexdigest()[:16] if tenant else ""


def publish_all(
    messages: Sequence[Message], publish: Callable[[Message], None]
) -> tuple[list[Message], Exception | None]:
    """Send messages, one after the other. Returns those that were not sent, and why the first of them was not.

    A message that cannot be sent keeps back no other one, and a queue that takes none only its own. A Redis that is
    away is not asked again. What was tried in vain comes last in the list.
    """
    left: list[Message] = []
    refused: set[str] = set()
    first_error: Exception | None = None
    for number, message in enumerate(messages, 1):
        if message.queue in refused:
            left.append(message)
            continue
        try:
            publish(message)
        except Exception as error:
            from kombu.exceptions import OperationalError  # who publishes has imported Celery

            first_error = first_error or error
            left.append(message)
            if _is_about_queue(error):
                refused.add(message.queue)
            elif isinstance(error, OperationalError | RedisError | OSError):
                return [*messages[number:], *left], first_error
    return left, first_error


def _is_about_queue(error: Exception) -> bool:
    """Whether a message could not be sent because of its own queue: others' messages can be."""
    cause = error.__cause__
    return isinstance(cause, NoPermissionError) or has_wrong_type(cause)


@dataclass(frozen=True, slots=True)
class _Sender:
    """A Celery app that takes no tasks, and pools of its own, which hold no connection yet.

    Celery's pools are shared by the whole process, so that nobody could close them, and do not notice a fork: parent
    and child would write to one socket.
    """

    app: Any
    connections: Any
    producers: Any
    template: MessageTemplate

    @classmethod
    def open(cls, settings: ClientSettings) -> _Sender:
        """For a publisher with these settings."""
        # First, as threads wait for each other in it: Celery's own module is replaced by another while it is imported.
        from orcd.store.broker import broker_configuration, sample_message

        # CELERY_CONFIG_MODULE, an application's, is not read then. A result backend would subscribe to every job.
        configuration = {**broker_configuration(settings), "result_backend": "disabled"}
        from celery import Celery
        from kombu.pools import ProducerPool

        app = Celery("orcd", set_as_current=False, amqp="orcd.store.broker:Amqp", config_source=configuration)
        connections = app.connection_for_write().Pool(MAX_CONNECTIONS)
        producers = ProducerPool(connections, limit=MAX_CONNECTIONS)
        return cls(app, connections, producers, MessageTemplate(sample_message(app, GENERATE)))

    @property
    def is_followed(self) -> bool:
        """Whether more is done here with each task that Celery sends: by a task that sends it, or by who traces it."""
        from celery import signals

        told = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)
        wrapped = [hasattr(each, "__wrapped__") for each in (type(self.app).send_task, self.app.amqp.Producer.publish)]
        return bool(self.app.current_worker_task) or any(wrapped) or any(each.has_listeners(GENERATE) for each in told)

    def close(self) -> None:
        """Give the connections back."""
        self.producers.force_close_all()
        self.connections.force_close_all()
        self.app.close()


class Publisher:
    """Sends the messages of jobs. Thread-safe; in a forked process it opens connections of that process's own.

    Celery, which takes long, is imported with the first message. Raises `InvalidRequest` on a malformed URL.
    """

    def __init__(self, settings: ClientSettings) -> None:
        RedisAddress.parse(settings.redis_url)
        self._settings = settings
        self._lock = threading.Lock()
        self._sender: _Sender | None = None
        _publishers.add(self)

    def text(self, message: Message) -> bytes:
        """The plain message of a new job, for the script that stores the job to send it; b"" if that is for `publish`.

        A tenant's message has a turn, and what others do with tasks that Celery sends, they do only then.
        """
        sender = self.open()
        if message.tenant or message.priority not in range(10) or sender.is_followed:
            return b""
        return sender.template.text(message.job_id, message.queue, message.priority)

    def publish(self, message: Message) -> None:
        """Send the job's recorded messages as they were, and a plain one where none of them goes to its queue.

        Raises kombu's ``OperationalError`` when the broker cannot be reached.
        """
        from orcd.store.broker import TENANT_HEADER

        sender = self.open()
        with sender.producers.acquire(block=True) as producer:
            for recorded in message.recorded:
                self._publish_again(producer, recorded, message.priority)
            if all(recorded.queue != message.queue for recorded in message.recorded):
                sender.app.send_task(
                    GENERATE,
                    kwargs={"job_id": message.job_id},
                    task_id=message.job_id,
                    queue=message.queue,
                    priority=message.priority,
                    headers={TENANT_HEADER: message.tenant} if message.tenant else None,
                    producer=producer,
                    retry=True,
                    retry_policy=RETRY_POLICY,
                )

    @staticmethod
    def _publish_again(producer: Any, message: RecordedMessage, priority: int) -> None:
        # Celery would make headers of its own, for a new task.
        producer.publish(
            (message.args, message.kwargs, message.embed),
            routing_key=message.queue,
            serializer="json",
            headers={**message.headers, "lang": "py", "task": message.task, "id": message.task_id},
            priority=min(priority, message.priority),
            correlation_id=message.task_id,
            retry=True,
            retry_policy=RETRY_POLICY,
        )

    def announce(self, messages: Sequence[Message]) -> None:
        """Send the messages of jobs that are stored and that no script has sent.

        A stored job is safe: where messages cannot be sent, this logs one warning and leaves their jobs to a worker's
        reaper.
        """
        left, _ = publish_all(messages, self.publish)
        if left:
            log.warning("%d jobs are stored but were not announced; a worker will find them in a while", len(left))

    def close(self) -> None:
        """Give the connections back."""
        _publishers.discard(self)
        if self._sender is not None:
            self._sender.close()

    @property
    def is_open(self) -> bool:
        """Whether Celery is there, so that nothing here takes a while."""
        return self._sender is not None

    def open(self) -> _Sender:
        """Import Celery, if that has not been done. Connects to nothing."""
        with self._lock:
            if self._sender is None:
                self._sender = _Sender.open(self._settings)
            return self._sender

    def _forget(self) -> None:
        """Begin anew; what the parent of this process has opened stays its own."""
        self._lock = threading.Lock()
        self._sender = None


_publishers: WeakSet[Publisher] = WeakSet()


def _forget_all() -> None:
    for publisher in _publishers:
        publisher._forget()


os.register_at_fork(after_in_child=_forget_all)
