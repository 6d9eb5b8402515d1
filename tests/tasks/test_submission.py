"""From a caller's fields to stored and announced jobs."""

from __future__ import annotations

import json
import logging
import time

import pytest

from tasks import schema
from tasks.client import Client
from tasks.connection import publishing_app
from tasks.job import Message
from tasks.submission import BATCH, Submission, announce, prepare_many
from tests.tasks.conftest import MakeStore
from worker.errors import InvalidRequest
from worker.settings import Settings


def test_a_submission_has_an_id_a_seed_and_its_message():
    submission = Submission.prepare({"prompt": "x", "model": "demo", "priority": 3}, None, 60)
    job_id = submission.message.job_id
    assert submission.message == Message(job_id, "orcd.demo", 3)
    assert submission.keys[0] == schema.job_key(job_id)
    assert json.loads(submission.arguments[1])["seed"] >= 0
    assert Submission.prepare({"prompt": "x"}, None, 60).message.job_id != job_id


def test_many_are_prepared_in_batches_in_order():
    batches = prepare_many([{"prompt": "x"}] * (BATCH + 1), [f"job-{number}" for number in range(BATCH + 1)], 60)
    assert [len(batch) for batch in batches] == [BATCH, 1]
    assert [job.message.job_id for batch in batches for job in batch] == [
        f"job-{number}" for number in range(BATCH + 1)
    ]


def test_a_refusal_names_the_request_by_its_index():
    with pytest.raises(InvalidRequest, match=r"^request 1: nonsense: unknown field$"):
        prepare_many([{"prompt": "x"}, {"prompt": "x", "nonsense": 1}], None, 60)


def test_only_jobs_that_are_new_are_announced(redis_url: str, connection):
    app = publishing_app(Settings(redis_url=redis_url))
    (batch,) = prepare_many([{"prompt": "x"}] * 3, ["a", "b", "c"], 60)
    announce(app, batch, [(1, 5), (0, 5), (1, 5)])
    sent = [json.loads(text)["headers"]["id"] for text in connection.lrange("celery:5", 0, -1)]
    assert sorted(sent) == ["a", "c"]
    app.close()


def test_a_job_that_cannot_be_announced_is_left_to_the_reaper(
    redis_url: str, make_store: MakeStore, caplog: pytest.LogCaptureFixture
):
    class Unheard(Client):
        """Its messages go to a broker that is not there."""

        def __init__(self, redis_url: str) -> None:
            super().__init__(redis_url)
            self._app = publishing_app(Settings(redis_url="redis://127.0.0.1:1/0"))

    store = make_store()
    begun = time.monotonic()
    with Unheard(redis_url) as client, caplog.at_level(logging.WARNING):
        job_ids = client.submit_many([{"prompt": "CANARY"}] * 3)
    assert time.monotonic() - begun < 5, "only the first message may be tried"
    assert caplog.messages == ["3 jobs are stored but were not announced; a worker will find them in a while"]
    assert store.redis.llen("celery:5") == 0
    for job_id in job_ids:
        store.redis.zadd(schema.QUEUED, {job_id: 1})  # as if the reaper's patience were over
    assert sorted(message.job_id for message in store.reap()) == sorted(job_ids)


def test_a_client_listens_to_no_celery_result(redis_url: str, connection):
    with Client(redis_url) as client:
        client.submit_many([{"prompt": "x"}] * 5)
        assert connection.pubsub_channels() == []
