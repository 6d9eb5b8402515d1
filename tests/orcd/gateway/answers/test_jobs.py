from __future__ import annotations

from typing import Any

import openai
import pytest
import redis

from orcd.gateway.answers.jobs import job_id_for
from orcd.gateway.api_keys import ANYBODY, ApiKey, ApiKeys
from orcd.gateway.settings import GatewaySettings
from orcd.store import schema
from orcd.store.enqueue import tenant_digest
from orcd.store.submission import check_job_id
from tests.orcd.answering_worker import AnsweringWorker
from tests.orcd.gateway.conftest import OpenSdk, StartGateway

ONE, TWO = ApiKey("one", b"1" * 32), ApiKey("two", b"2" * 32)


def test_ids_are_unlike_each_other_and_begin_with_the_tag_of_their_key() -> None:
    ids = {check_job_id(job_id_for(key)) for key in (ANYBODY, ONE, TWO) for _ in range(10)}
    assert len(ids) == 30
    assert sum(job_id.startswith(ONE.tag) for job_id in ids) == 10


def test_an_idempotency_key_gives_each_caller_an_id_of_his_own() -> None:
    assert job_id_for(ONE, "a") == job_id_for(ONE, "a")
    ids = {job_id_for(key, text) for key in (ANYBODY, ONE, TWO) for text in ("a", "b", "", "\udcff")}
    assert len(ids) == 12
    ids |= {check_job_id(job_id_for(ONE, text, index)) for text in ("a", "a[1]:") for index in (1, 2)}
    assert len(ids) == 16


def test_each_key_is_a_tenant_and_names_no_other(
    start_gateway: StartGateway, worker: AnsweringWorker, open_sdk: OpenSdk, connection: redis.Redis
) -> None:
    body: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "count"}]}
    with_keys = start_gateway(api_keys="k,l")
    for key in ("k", "l"):
        open_sdk(with_keys, key).chat.completions.create(**body)
    with pytest.raises(openai.BadRequestError, match="the API key is the tenant"):
        open_sdk(with_keys, "k").chat.completions.create(**body, extra_body={"tenant": "me"})
    open_sdk(start_gateway()).chat.completions.create(**body, extra_body={"tenant": "me"})
    keys = ApiKeys.load(GatewaySettings(api_keys="k,l"))
    callers = [keys.find(f"Bearer {key}") for key in ("k", "l")]
    names = {*(caller.tag for caller in callers if caller), "me"}
    jobs = connection.scan_iter(schema.job_key("*"))
    assert {connection.hget(job, "tenant").decode() for job in jobs} == {tenant_digest(name) for name in names}


def test_a_caller_s_trace_is_kept_with_the_job_and_a_malformed_one_is_not(
    start_gateway: StartGateway, worker: AnsweringWorker, open_sdk: OpenSdk, connection: redis.Redis
) -> None:
    trace, sdk = f"00-{'a' * 32}-{'b' * 16}-01", open_sdk(start_gateway())
    body: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "count"}]}
    for header in (trace, "nonsense"):
        sdk.chat.completions.create(**body, extra_headers={"traceparent": header})
    kept = {connection.hget(job, "trace") for job in connection.scan_iter(schema.job_key("*"))}
    assert kept == {trace.encode(), None}
