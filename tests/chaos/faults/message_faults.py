"""Messages that come twice, make no sense, or revoke what runs."""

from __future__ import annotations

from typing import Any

from celery import Celery

from orcd.settings import ClientSettings
from orcd.store.enqueue import Message, Publisher, queue_name
from tests.chaos.faults.data_faults import TARGETS, queued_messages
from tests.chaos.faults.fault import Fault, Scene, Staged
from tests.chaos.faults.malformed import malformed_messages

MOST_COPIES = 100


class Duplicates(Fault):
    """Messages that wait come again, and jobs that run are announced again."""

    name = "duplicate messages"

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Send them."""
        with scene.redis.connection() as connection:
            for key, text in list(queued_messages(connection))[:MOST_COPIES]:
                connection.lpush(key, text, text)
        publisher = Publisher(ClientSettings(redis_url=scene.redis.url))
        for seen in scene.clients.active(*TARGETS):
            for queue in (queue_name(seen.model), queue_name(None)):
                publisher.publish(Message(seen.job_id, queue, scene.chance.randrange(10)))
        publisher.close()


class Malformed(Fault):
    """Messages of every malformed kind on the queues, and some where workers listen for control."""

    name = "malformed messages"
    weight = 2

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Send each once."""
        models = [worker.model.stem for worker in scene.fleet.workers]
        messages = list(malformed_messages().values())
        scene.chance.shuffle(messages)
        with scene.redis.connection() as connection:
            for text in messages:
                connection.lpush(queue_name(scene.chance.choice([None, *models])), text)
            for text in scene.chance.sample(messages, 10):
                connection.publish("orcd:control", text)
                connection.publish("/0.celery.pidbox", text)
        scene.wait(0.5, 1.0)


class Revoked(Fault):
    """Celery's revoke for jobs that run or wait: they end, one way or the other."""

    name = "revoke"

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Revoke some."""
        staged.target_errors = ("CANCELLED",)
        active = scene.clients.active(*TARGETS)
        chosen = [seen.job_id for seen in scene.chance.sample(active, min(2, len(active)))]
        staged.targets.update(chosen)
        app: Any = Celery("somebody", broker=scene.redis.url, set_as_current=False)
        app.control.revoke(chosen, terminate=scene.chance.random() < 0.7)
        app.close()
