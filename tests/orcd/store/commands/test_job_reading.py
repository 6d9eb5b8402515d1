"""What clients read of jobs comes in one round trip, also from a Redis that was told to forget its scripts."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from orcd.errors import InvalidRequest
from orcd.status import Look
from orcd.store import schema
from orcd.store.commands.job_reading import pipeline_of_page, pipeline_of_statuses, read_statuses
from tests.orcd.job_record import J, submit
from tests.orcd.job_writer import MakeStore, claimed


@pytest.mark.parametrize("knows", [True, False])
def test_statuses_are_read_of_jobs_that_wait_and_run(connection: redis.Redis, make_store: MakeStore, knows: bool):
    look: Any = connection.register_script(schema.script("look"))
    store = make_store()
    submit(store, J)
    submit(store, "job-2")
    writer = claimed(store, J)
    assert writer.start()
    assert writer.tokens(3)
    if not knows:
        connection.script_flush()
    answers = pipeline_of_statuses(look, [J, "job-2"], "").execute(connection, raise_on_error=False)
    running, queued = read_statuses([J, "job-2"], answers)
    assert (running.state, running.tokens_out) == ("running", 3)
    assert (queued.state, queued.position) == ("queued", 1)


def test_a_malformed_id_is_refused_before_anything_is_sent():
    with pytest.raises(InvalidRequest, match="job_id"):
        pipeline_of_statuses(None, ["a b"], "")


def test_a_job_is_looked_at_before_its_log_is_read(connection: redis.Redis, make_store: MakeStore):
    look: Any = connection.register_script(schema.script("look"))
    connection.script_flush()
    store = make_store()
    submit(store, J)
    writer = claimed(store, J)
    assert writer.start()
    answer, entries = pipeline_of_page(look, J, "0-0", "").execute(connection, raise_on_error=False)
    assert Look.read(J, answer).state == "running"
    assert [entry for entry, _ in entries] == [b"0-1"]
