"""Celery's Redis result backend, less some of its work for each result, as each job has one.

It looks at the stored result before it writes one, which takes a second round trip, and encodes with Python's json.
"""

from __future__ import annotations

from typing import Any

import celery.backends.redis
import msgspec
from celery import states

from orcd.store import schema


class ResultBackend(celery.backends.redis.RedisBackend):  # type: ignore[misc]
    """Stores what its base class stores; here Redis itself looks whether there is a success already."""

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **_: Any
    ) -> Any:
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = task_id
        # What a task of ours returns is made of structs; exceptions may hold what only kombu's encoder knows.
        text = msgspec.json.encode(meta) if state == states.SUCCESS else self.encode(meta)
        arguments = (schema.celery_script("store_result"), 1, self.get_key_for_task(task_id), text, self.expires)
        self.ensure(self.client.eval, arguments)
        return result
