from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import redis

from orcd.gateway.answers import event_reader
from orcd.store import schema
from tests.conftest import wait_until
from tests.orcd.answering_worker import AnsweringWorker
from tests.orcd.job_writer import MakeStore, claimed

SEVERAL: dict[str, Any] = {"model": "demo", "prompt": ["a", "b", "c"]}


def test_each_of_several_prompts_has_its_choice(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(**SEVERAL, echo=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.text for choice in answer.choices] == ["a 1 2 3", "b 1 2 3", "c 1 2 3"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 9
    ids = sdk.completions.create(model="demo", prompt=[[3], [4, 5]])
    assert [choice.text for choice in ids.choices] == [" 1 2 3", " 1 2 3"]


@pytest.mark.parametrize("streams", [False, True])
def test_a_prompt_that_cannot_be_answered_fails_the_call_and_ends_the_others(
    http: httpx.Client, served_model: str, connection: redis.Redis, make_store: MakeStore, streams: bool
) -> None:
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(http.post, "/completions", json={**SEVERAL, "stream": streams})
        wait_until(lambda: connection.zcard(schema.QUEUED) == 3)
        requests = {
            job_id.decode(): connection.hget(schema.job_key(job_id.decode()), "request")
            for job_id in connection.zrange(schema.QUEUED, 0, -1)
        }
        (second,) = (job_id for job_id, request in requests.items() if b'"prompt":"b"' in request)
        writer = claimed(make_store(), second)
        writer.start()
        writer.fail("CONTEXT_LENGTH_EXCEEDED", "the prompt has 9 tokens")
        assert answer.result().status_code == 400
    error = answer.result().json()["error"]
    assert (error["param"], error["code"]) == ("prompt[1]", "context_length_exceeded")
    assert error["message"] == "prompt[1]: the prompt has 9 tokens"
    states = {job_id: connection.hget(schema.job_key(job_id), "state") for job_id in requests}
    assert states.pop(second) == b"failed"
    assert list(states.values()) == [b"cancelled"] * 2
    assert connection.zcard(schema.QUEUED) == 0


def test_a_prompt_that_fails_later_is_the_last_event_of_a_stream_and_ends_the_others(
    http: httpx.Client,
    served_model: str,
    connection: redis.Redis,
    make_store: MakeStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_reader, "HOLD_S", 0.05)
    with http.stream("POST", "/completions", json={**SEVERAL, "stream": True}) as response:
        writers = [claimed(make_store(), job_id.decode()) for job_id in connection.zrange(schema.QUEUED, 0, -1)]
        for writer in writers:
            writer.start()
        writers[0].tokens(1)
        writers[2].fail("CUDA_ERROR", "it broke")
        *_, failure, done = (line for line in response.iter_lines() if line)
    assert done == "data: [DONE]"
    error = json.loads(failure.removeprefix("data: "))["error"]
    assert (error["message"].partition("]")[2], error["code"]) == (": it broke", "cuda_error")
    asked = [connection.hget(schema.job_key(writer.claim.job_id), "cancel") for writer in writers]
    assert asked[:2] == [b"1", b"1"]


def test_nobody_listens_to_any_job_of_a_caller_who_has_left(
    http: httpx.Client, served_model: str, connection: Any
) -> None:
    with pytest.raises(httpx.ReadTimeout):
        http.post("/completions", json=SEVERAL, timeout=0.5)
    channels = [schema.events_channel(job_id.decode()) for job_id in connection.zrange(schema.QUEUED, 0, -1)]
    assert len(channels) == 3
    wait_until(lambda: not any(number for _channel, number in connection.pubsub_numsub(*channels)))


@pytest.mark.parametrize(("headers", "num_left"), [({}, 0), ({"Idempotency-Key": "one"}, 2)])
def test_where_the_queue_has_no_place_for_all_prompts_none_is_left_there_unless_it_is_found_again(
    http: httpx.Client,
    served_model: str,
    connection: redis.Redis,
    make_store: MakeStore,
    headers: dict[str, str],
    num_left: int,
) -> None:
    make_store().limit_queue(2, replaces=True)
    refused = http.post("/completions", json=SEVERAL, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert connection.zcard(schema.QUEUED) == num_left


def test_with_an_idempotency_key_several_prompts_make_the_same_jobs(
    http: httpx.Client, worker: AnsweringWorker, connection: redis.Redis
) -> None:
    headers = {"Idempotency-Key": "one"}
    first, second = (http.post("/completions", json=SEVERAL, headers=headers).json() for _ in range(2))
    assert first == second
    assert len(list(connection.scan_iter(schema.job_key("*")))) == 3
    conflict = http.post("/completions", json={**SEVERAL, "prompt": ["a", "b", "d"]}, headers=headers)
    assert conflict.status_code == 409
