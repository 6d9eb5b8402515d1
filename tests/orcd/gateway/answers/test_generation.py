from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import redis

from orcd.async_client import AsyncClient
from orcd.errors import RedisUnavailable
from orcd.events import End, Event
from orcd.gateway.answers import event_reader
from orcd.store import schema
from tests.conftest import wait_until
from tests.orcd.answering_worker import AnsweringWorker, FailingWorker
from tests.orcd.gateway.conftest import OpenSdk
from tests.orcd.job_writer import MakeStore, claimed

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "count"}]}
STREAM = {**CHAT, "stream": True}
RESPONSE: dict[str, Any] = {"model": "demo", "input": "count"}


def frames_of(response: httpx.Response) -> list[dict[str, str]]:
    """The server-sent events of a response, each as its fields."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n") if not line.startswith(":")]
    events = [event for event in "\n".join(lines).split("\n\n") if event]
    return [dict(line.split(": ", 1) for line in event.split("\n")) for event in events]


def test_a_chat_is_answered_whole(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(**CHAT)
    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.content == " 1 2 3"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


def test_a_stream_begins_with_the_role_and_ends_with_the_reason_and_usage(sdk: openai.OpenAI) -> None:
    chunks = list(sdk.chat.completions.create(**STREAM, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == " 1 2 3"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1


def test_completions_stream_and_echo(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(model="demo", prompt="0", echo=True)
    assert answer.choices[0].text == "0 1 2 3"
    chunks = list(sdk.completions.create(model="demo", prompt="0", echo=True, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "0 1 2 3"


def test_several_prompts_stream_as_choices_of_one_answer(sdk: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    *chunks, last = sdk.completions.create(
        model="demo", prompt=["0", "1"], echo=True, stream=True, stream_options=options
    )
    for index in range(2):
        choices = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(choice.text for choice in choices) == f"{index} 1 2 3"
        assert choices[-1].finish_reason == "length"
    assert last.usage is not None
    assert (last.choices, last.usage.completion_tokens) == ([], 6)
    assert len({(chunk.id, chunk.created) for chunk in (*chunks, last)}) == 1


def test_a_stream_of_several_prompts_has_no_ids_to_go_on_behind(http: httpx.Client, worker: AnsweringWorker) -> None:
    body = {"model": "demo", "prompt": ["0", "1"], "stream": True}
    frames = frames_of(http.post("/completions", json=body))
    assert frames.pop() == {"data": "[DONE]"}
    assert {"".join(frame) for frame in frames} == {"data"}
    refused = http.post("/completions", json=body, headers={"Last-Event-ID": f"{'0' * 32}:1"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Last-Event-ID")


def test_a_chat_goes_on_behind_the_last_event_that_arrived(http: httpx.Client, worker: AnsweringWorker) -> None:
    whole = http.post("/chat/completions", json=STREAM)
    frames = frames_of(whole)
    assert frames[-1] == {"data": "[DONE]"}
    assert len(frames) == 4, "role and tokens, in one event of the log each, the reason, the end"
    for number, frame in enumerate(frames[:2]):
        again = http.post("/chat/completions", json=STREAM, headers={"Last-Event-ID": frame["id"]})
        assert frames_of(again) == frames[number + 1 :]


@pytest.mark.parametrize("event_id", ["", "x", "1:2", f"{'0' * 32}:1"])
def test_a_last_event_id_of_nobody_is_refused(http: httpx.Client, event_id: str) -> None:
    response = http.post("/chat/completions", json=STREAM, headers={"Last-Event-ID": event_id})
    assert response.status_code in (400, 404)


def test_what_a_worker_finds_wrong_is_the_status_of_a_stream_too(
    url: str, failing_worker: FailingWorker, open_sdk: OpenSdk
) -> None:
    sdk = open_sdk(url)
    with pytest.raises(openai.InternalServerError) as caught:
        sdk.chat.completions.create(**CHAT)
    assert caught.value.status_code == 503
    assert caught.value.code == "vram_oom"
    with pytest.raises(openai.APIError, match="does not fit"):
        list(sdk.chat.completions.create(**STREAM))


@pytest.mark.parametrize(("path", "asked"), [("/completions", {"prompt": "x"}), ("/responses", {"input": "x"})])
def test_what_a_worker_finds_wrong_after_it_has_begun_is_the_status_of_a_stream_too(
    http: httpx.Client,
    served_model: str,
    connection: redis.Redis,
    make_store: MakeStore,
    path: str,
    asked: dict[str, str],
) -> None:
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(http.post, path, json={"model": served_model, "stream": True, **asked})
        wait_until(lambda: connection.zcard(schema.QUEUED))
        (job_id,) = connection.zrange(schema.QUEUED, 0, -1)
        writer = claimed(make_store(), job_id.decode())
        writer.start()
        time.sleep(0.1)
        writer.fail("CONTEXT_LENGTH_EXCEEDED", "the prompt is too long")
        assert answer.result().status_code == 400
        assert answer.result().json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("body", "param", "complaint"),
    [
        ({**CHAT, "temprature": 1}, "temprature", "did you mean"),
        ({**CHAT, "temperature": 9}, "temperature", ""),
        ({**CHAT, "stream": 1}, "stream", "must be true or false"),
        ({**CHAT, "stream": 0}, "stream", "must be true or false"),
        ({**CHAT, "stream_options": {}}, "stream_options", "needs stream"),
        ({**STREAM, "stream_options": {"include_usage": 3}}, "stream_options", "must be an object"),
        ({**STREAM, "stream_options": {"include_usage": 0}}, "stream_options", "must be an object"),
        ({**STREAM, "stream_options": []}, "stream_options", "must be an object"),
        ({**STREAM, "prompt_logprobs": 0}, "prompt_logprobs", "needs stream false"),
        ({"model": "demo"}, "messages", "must be given"),
    ],
)
def test_a_body_that_cannot_be_used_is_refused_by_its_field(
    http: httpx.Client, body: dict[str, Any], param: str, complaint: str
) -> None:
    response = http.post("/chat/completions", json=body)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"] == param
    assert complaint in error["message"]
    assert response.headers["x-should-retry"] == "false"


ECHOES = {"echo": {"logprobs": 1}, "prompt_logprobs": {"prompt_logprobs": 1}, "max_tokens": {}}


@pytest.mark.parametrize("param", ECHOES)
def test_what_is_told_of_a_prompt_is_in_no_chunks(http: httpx.Client, param: str) -> None:
    echo = {"model": "demo", "prompt": "x", "echo": True, "stream": True, "max_tokens": 0}
    error = http.post("/completions", json={**echo, **ECHOES[param]}).json()["error"]
    assert (error["param"], "needs stream false" in error["message"]) == (param, True)


def test_an_idempotency_key_makes_the_same_job_once(http: httpx.Client, worker: AnsweringWorker) -> None:
    headers = {"Idempotency-Key": "one"}
    first, second = (http.post("/chat/completions", json=CHAT, headers=headers).json() for _ in range(2))
    assert first == second
    conflict = http.post("/chat/completions", json={**CHAT, "seed": 1}, headers=headers)
    assert conflict.status_code == 409
    assert http.post("/chat/completions", json=CHAT).json()["id"] != first["id"]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/chat/completions", {"messages": CHAT["messages"]}),
        ("/completions", {"prompt": "x"}),
        ("/responses", {"input": "x"}),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
def test_a_model_that_nobody_serves_is_not_found_at_once(
    http: httpx.Client, connection: redis.Redis, served_model: str, path: str, asked: dict[str, Any], streams: bool
) -> None:
    response = http.post(path, json={"model": "other", "stream": streams, **asked})
    assert response.status_code == 404
    assert (response.json()["error"]["code"], response.json()["error"]["param"]) == ("model_not_found", "model")
    assert connection.zcard(schema.QUEUED) == 0


def test_a_stream_that_waits_keeps_its_connection_with_comments(
    http: httpx.Client, served_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_reader, "HOLD_S", 0.05)
    monkeypatch.setattr("orcd.gateway.answers.sse.PING_S", 0.05)
    with http.stream("POST", "/chat/completions", json=STREAM) as response:
        lines = response.iter_lines()
        assert next(lines).startswith(":")


@pytest.mark.parametrize("kind", ["chat", "completion", "response"])
def test_comments_between_tokens_are_none_of_an_sdk_s_events(
    url: str,
    open_sdk: OpenSdk,
    served_model: str,
    connection: Any,
    make_store: MakeStore,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setattr("orcd.gateway.answers.sse.PING_S", 0.02)
    sdk = open_sdk(url)

    def answer() -> str:
        if kind == "response":
            events = sdk.responses.create(**RESPONSE, stream=True)
            return "".join(event.delta for event in events if event.type == "response.output_text.delta")
        if kind == "completion":
            return "".join(
                each.choices[0].text for each in sdk.completions.create(model="demo", prompt="0", stream=True)
            )
        return "".join(each.choices[0].delta.content or "" for each in sdk.chat.completions.create(**STREAM))

    with ThreadPoolExecutor() as threads:
        text = threads.submit(answer)
        wait_until(lambda: connection.zcard(schema.QUEUED))
        (job_id,) = connection.zrange(schema.QUEUED, 0, -1)
        writer = claimed(make_store(), job_id.decode())
        writer.start()
        for _ in range(3):
            writer.tokens(1)
            time.sleep(0.2)  # a worker that has died, or computes for others
        writer.end()
        assert text.result() == " 1 2 3"


@pytest.mark.parametrize("path", ["/chat/completions", "/responses"])
def test_a_stream_that_can_be_read_no_further_says_why(
    http: httpx.Client, worker: AnsweringWorker, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    follow = AsyncClient.events

    async def lost(*asked: Any) -> AsyncIterator[Event]:
        async for event in follow(*asked):
            if isinstance(event, End):
                raise RedisUnavailable("cannot reach Redis")
            yield event

    monkeypatch.setattr(AsyncClient, "events", lost)
    *begun, last = frames_of(
        http.post(path, json=STREAM if path == "/chat/completions" else {**RESPONSE, "stream": True})
    )
    if path == "/chat/completions":
        assert last == {"data": "[DONE]"}
        assert json.loads(begun[-1]["data"])["error"]["code"] == "redis_unavailable"
        return
    told = json.loads(last["data"])
    assert (last["event"], told["type"], told["code"]) == ("error", "error", "redis_unavailable")
    assert told["sequence_number"] > json.loads(begun[-1]["data"])["sequence_number"]


@pytest.mark.parametrize("body", [CHAT, STREAM, RESPONSE, {**RESPONSE, "stream": True}])
def test_nobody_listens_to_a_job_whose_caller_has_left_while_it_writes(
    http: httpx.Client, served_model: str, connection: Any, make_store: MakeStore, body: dict[str, Any]
) -> None:
    text = json.dumps(body)
    path = "/v1/chat/completions" if "messages" in body else "/v1/responses"
    with socket.create_connection((http.base_url.host, http.base_url.port or 80)) as caller:
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(text)}\r\n\r\n"
        caller.sendall((head + text).encode())
        wait_until(lambda: connection.zcard(schema.QUEUED))
        (job_id,) = (member.decode() for member in connection.zrange(schema.QUEUED, 0, -1))
        writer = claimed(make_store(), job_id)
        writer.start()
        wait_until(lambda: listeners(connection, job_id) == 1)
    assert json.loads(connection.hget(schema.job_key(job_id), "request"))["on_disconnect"] == "cancel"

    def has_none_while_it_writes() -> bool:
        writer.tokens(1)  # more often than the gateway looks for its caller
        return listeners(connection, job_id) == 0

    wait_until(has_none_while_it_writes)


def listeners(connection: Any, job_id: str) -> int:
    ((_channel, number),) = connection.pubsub_numsub(schema.events_channel(job_id))
    return int(number)
