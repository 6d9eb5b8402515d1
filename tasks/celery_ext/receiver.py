"""A worker's messages between their queue and their acknowledgement, as Redis knows them.

One script takes a message and notes that it is this receiver's, so there is no moment at which nobody has it. The notes
belong to a receiver as jobs belong to a worker: as long as it renews its lease. Then any other puts them back.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from celery.utils.log import get_logger
from kombu.transport import virtual
from redis.exceptions import NoPermissionError

from orcd.store import schema
from orcd.store.broker import PRIORITIES, PRIORITY_SEPARATOR, Channel, say_wrong_type
from orcd.store.commands.redis_script import RedisScript
from orcd.store.dead_letters import DEAD_LETTER_BYTES, DEAD_LETTER_TTL_S, MAX_DEAD_LETTERS
from tasks.celery_ext.message import MAX_MESSAGE_BYTES, Unreadable
from tasks.worker_id import worker_id

logger = get_logger(__name__)
_numbers = itertools.count()

MAX_RESTORED = 1000
"""Messages that one call of a script puts back, or gathers."""
MAINTENANCE_S = 1.0
AGE_SPANS = 8
"""Messages of one list that came within a part of the ageing time have one age: into so many parts it is divided."""
AGES_TTL_S = 7 * 24 * 3600
MAX_SEARCHED = 1000
"""Keys that one call of a script looks at for forgotten notes."""


class Receiver:
    """Takes messages under a name that nobody else has or had.

    ``client`` is for the commands that are waited for; all of them raise redis-py's errors. Should an answer to
    `take_command` be lost, the messages in it are this receiver's all the same: then `close` it.

    Lists are emptied in their order, but messages that have waited for ``ageing_ms`` get every second place.
    ``on_too_long`` is told of those that never leave Redis.
    """

    def __init__(
        self,
        name: str,
        lease_ms: int,
        client: Any,
        key_prefix: str = "",
        ageing_ms: int = 300_000,
        on_too_long: Callable[[Unreadable], object] = lambda _: None,
    ) -> None:
        self._name = name
        self._on_too_long = on_too_long
        self._lease_ms = lease_ms
        self._client = client
        self._take = RedisScript(client, schema.celery_script("take"))
        self._ageing_ms = ageing_ms
        self._lists: Sequence[str] = ()
        self._may_gather = True
        self._ages = key_prefix + schema.AGES
        self._receivers = key_prefix + schema.RECEIVERS
        self._notes_prefix = key_prefix + schema.UNACKED
        self._notes = schema.unacked_key(name, key_prefix)
        self._dead = key_prefix + schema.DEAD
        self._num_taken = 0
        self._acked: deque[str] = deque()
        self._acked_in_flight: list[str] = []
        self._next_maintenance = 0.0
        self._next_search = 0.0
        self._search_cursor = b"0"

    def take_command(self, lists: Sequence[str], most: int) -> list[Any]:
        """The command that takes up to ``most`` messages, from the first list that has any on.

        Acknowledgements go with it. Its answer is for `taken`, before the next one.
        """
        self._acked_in_flight += self._take_acked()
        self._lists = lists
        keys = [self._receivers, self._notes, self._ages, self._dead, *lists]
        arguments = [self._name, self._lease_ms, most, self._num_taken, self._ageing_ms, MAX_MESSAGE_BYTES]
        arguments += [DEAD_LETTER_BYTES, MAX_DEAD_LETTERS, DEAD_LETTER_TTL_S, *self._acked_in_flight]
        return ["EVALSHA", self._take.sha, len(keys), *keys, *arguments]

    def load_take(self) -> None:
        """Tell Redis the script that `take_command` names, which it turned out not to know."""
        self._client.script_load(self._take.script)

    def taken(self, answer: Sequence[Any]) -> list[tuple[str, str, bytes]]:
        """The messages that Redis answered with: delivery tag, list, text."""
        self._acked_in_flight.clear()
        messages = []
        taken, unusable, too_long, num_deleted = answer
        for reason, message_id in too_long:
            logger.warning("A message that is too long was put with the dead letters: see orcd dead list")
            self._on_too_long(Unreadable(reason.decode(), message_id.decode()))
        for key in unusable:
            say_wrong_type(key.decode(), "nothing is taken from it")
        self._say_if_deleted(num_deleted, self._dead, "those before are lost")
        for tag, text in taken:
            delivery_tag = tag.decode()
            messages.append((delivery_tag, delivery_tag.partition(" ")[2], text))
        self._num_taken += len(messages)
        return messages

    def ack(self, tag: str) -> None:
        """The message need not be delivered again. Redis is told later; that may be lost, as a duplicate is harmless.

        May be called by any thread.
        """
        self._acked.append(tag)

    def flush(self) -> None:
        """Tell Redis now what was acknowledged."""
        if acked := self._take_acked():
            self._client.hdel(self._notes, *acked)

    def restore(self, tags: Sequence[str]) -> None:
        """Put these messages back at the head of their lists."""
        for start in range(0, len(tags), MAX_RESTORED):
            self._restore(self._lease_ms, tags[start : start + MAX_RESTORED])

    def maintain(self) -> None:
        """Renew the lease, put back what others hold whose lease ran out, gather, note ages; at most once a second.

        Once a lease, a search through all keys begins for what receivers hold that are not known any more.
        """
        now = time.monotonic()
        if now >= self._next_maintenance:
            self._next_maintenance = now + min(MAINTENANCE_S, self._lease_ms / 4000)
            while self._restore(self._lease_ms) == MAX_RESTORED:
                pass
            if self._lists:
                self._gather()
                keys = [self._ages, *self._lists]
                span_ms = self._ageing_ms // AGE_SPANS
                num_deleted = self._run("age", keys, [span_ms, AGES_TTL_S])
                self._say_if_deleted(num_deleted, self._ages, "messages count as new")
            if self._search_cursor != b"0" or now >= self._next_search:
                self._search(now)

    def dead_letter(self, tag: str, reason: str, message_id: str = "", *, whole: bool = False) -> bool:
        """Move a message to the dead letters; False if it is not this receiver's any more.

        ``reason`` holds nothing of its text. With ``whole`` all of it is kept, however long it is.
        """
        arguments = [tag, reason, message_id, -1 if whole else DEAD_LETTER_BYTES, MAX_DEAD_LETTERS, DEAD_LETTER_TTL_S]
        moved, num_deleted = self._run("dead_letter", [self._notes, self._dead], arguments)
        self._say_if_deleted(num_deleted, self._dead, "those before are lost")
        return bool(moved)

    def close(self) -> None:
        """Put everything back that was not acknowledged. The receiver takes nothing any more."""
        if acked := self._acked_in_flight + self._take_acked():
            self._client.hdel(self._notes, *acked)
        while self._restore(0) == MAX_RESTORED:
            pass

    def _restore(self, lease_ms: int, tags: Sequence[str] = ()) -> int:
        arguments = [self._notes_prefix, self._name, lease_ms, MAX_RESTORED, *tags]
        num_restored, num_deleted = self._run("restore", [self._receivers, self._ages], arguments)
        self._say_if_deleted(num_deleted, self._receivers, "leases of receivers begin anew")
        return int(num_restored)

    def _gather(self) -> None:
        """Bring over what senders that kept kombu's own separator have put into lists of other names."""
        keys: list[str] = []
        for name in self._lists:
            queue, separator, priority = name.rpartition(PRIORITY_SEPARATOR)
            if separator and priority in map(str, PRIORITIES):
                keys += [f"{queue}{Channel.sep}{priority}", name]
        try:
            while keys and self._may_gather and self._run("gather", keys, [MAX_RESTORED]) == MAX_RESTORED:
                pass
        except NoPermissionError:  # a user with fewer rights than in docs/redis.acl, as of an earlier version
            self._may_gather = False

    def _run(self, name: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        return RedisScript(self._client, schema.celery_script(name))(keys, arguments)

    def _say_if_deleted(self, num_deleted: int, key: str, consequence: str) -> None:
        if num_deleted:
            say_wrong_type(key, f"it was deleted, and {consequence}")

    def _search(self, now: float) -> None:
        if self._search_cursor == b"0":
            self._next_search = now + self._lease_ms / 1000
        arguments = [self._notes_prefix, self._lease_ms, self._search_cursor, MAX_SEARCHED]
        self._search_cursor = self._run("adopt", [self._receivers], arguments)

    def _take_acked(self) -> list[str]:
        return [self._acked.popleft() for _ in range(len(self._acked))]


class QoS(virtual.QoS):  # type: ignore[misc]
    """What a channel has received and not acknowledged.

    ``num_free`` says how many messages there is room for; ``on_unreadable`` is told of those that nobody can read.
    """

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        super().__init__(channel, prefetch_count)
        self._on_collect.cancel()  # what a process leaves behind at its end, others put back
        self.num_free: Callable[[], int] = lambda: 1
        self.on_unreadable: Callable[[Unreadable], object] = lambda _: None
        name = f"{worker_id()}-{next(_numbers)}"
        lease_ms, prefix = channel.receiver_lease_ms, channel.global_keyprefix
        self.receiver = Receiver(
            name, lease_ms, channel.plain_client(), prefix, channel.ageing_ms, lambda why: self.on_unreadable(why)
        )

    def ack(self, delivery_tag: str) -> None:
        """The message need not be delivered again."""
        self.receiver.ack(delivery_tag)
        super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """The message is not wanted: drop it, or put it back."""
        if requeue:
            self.receiver.restore([delivery_tag])
            super().ack(delivery_tag)
        else:
            self.ack(delivery_tag)

    def dead_letter(self, delivery_tag: str, why: Unreadable) -> None:
        """Nobody can read the message: keep it with the dead letters."""
        if self.receiver.dead_letter(delivery_tag, why.reason, why.shown_id, whole=why.is_foreign):
            logger.warning("A message that cannot be read was put with the dead letters: see orcd dead list")
            self.on_unreadable(why)
        super().ack(delivery_tag)

    def flush(self) -> None:
        """Tell Redis now what was acknowledged."""
        self.receiver.flush()

    def restore_visible(self, *_: Any, **__: Any) -> None:
        """Look after the receiver: kombu calls this all the time."""
        self.receiver.maintain()

    def restore_unacked(self, *_: Any, **__: Any) -> None:
        """Put back all that was received."""
        self._flush()
        self.receiver.restore(list(self._delivered))
        self._delivered.clear()

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Nothing: the channel that closes has closed the receiver."""
