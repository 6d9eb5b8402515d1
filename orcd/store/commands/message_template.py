"""The message of a job as Celery sends it, without Celery's work for each."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import msgspec


class MessageTemplate:
    """Makes messages like one that was sent for a job: they differ in their job, queue, priority and delivery tag."""

    def __init__(self, sent: Mapping[str, Any]) -> None:
        """``sent`` is the message of any job, as a channel of kombu's got it."""
        self._sent = sent
        args, _, embed = msgspec.json.decode(b64decode(sent["body"]))
        self._args, self._embed = args, embed

    def text(self, job_id: str, queue: str, priority: int) -> bytes:
        """The message of another job, as it stands in its queue's list."""
        headers, properties = self._sent["headers"], self._sent["properties"]
        kwargs = {"job_id": job_id}
        message = {
            **self._sent,
            "body": b64encode(msgspec.json.encode((self._args, kwargs, self._embed))).decode(),
            "headers": {**headers, "id": job_id, "root_id": job_id, "kwargsrepr": repr(kwargs)},
            "properties": {
                **properties,
                "correlation_id": job_id,
                "priority": priority,
                "delivery_info": {**properties["delivery_info"], "routing_key": queue},
                "delivery_tag": str(uuid4()),
            },
        }
        return msgspec.json.encode(message)
