from __future__ import annotations

from orcd.gateway.answers.jobs import job_id_for
from orcd.gateway.api_keys import ANYBODY, ApiKey
from orcd.store.submission import check_job_id

ONE, TWO = ApiKey("one", b"1" * 32), ApiKey("two", b"2" * 32)


def test_ids_are_unlike_each_other_and_begin_with_the_tag_of_their_key() -> None:
    ids = {check_job_id(job_id_for(key)) for key in (ANYBODY, ONE, TWO) for _ in range(10)}
    assert len(ids) == 30
    assert sum(job_id.startswith(ONE.tag) for job_id in ids) == 10


def test_an_idempotency_key_gives_each_caller_an_id_of_his_own() -> None:
    assert job_id_for(ONE, "a") == job_id_for(ONE, "a")
    ids = {job_id_for(key, text) for key in (ANYBODY, ONE, TWO) for text in ("a", "b", "", "\udcff")}
    assert len(ids) == 12
