"""From a caller's fields to what is written and announced."""

from __future__ import annotations

import json

import pytest

from orcd.errors import InvalidRequest
from orcd.request import Request
from orcd.store import schema
from orcd.store.enqueue import Message
from orcd.store.submission import BATCH, Submission, check_job_id, prepare_many


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


def test_job_ids_may_be_uuids_and_names():
    for job_id in ("0", "a" * 128, "batch_1:line-7.b", "3f2b8c1e-0000-4000-8000-000000000000"):
        assert check_job_id(job_id) == job_id


def test_the_queue_is_that_of_the_model():
    assert Submission.of("job-1", Request(prompt="x"), 1).message.queue == "celery"
    assert Submission.of("job-1", Request(prompt="x", model="demo"), 1).message.queue == "orcd.demo"
