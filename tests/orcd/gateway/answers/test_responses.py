from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
import redis

from orcd.client import Client
from orcd.store import schema
from tests.orcd.answering_worker import AnsweringWorker
from tests.orcd.gateway.conftest import NO_TLS, StartGateway
from tests.orcd.job_writer import MakeStore, claimed

BODY: dict[str, Any] = {"model": "demo", "input": "count", "metadata": {"a": "b"}}


def test_a_response_is_answered_whole_and_kept(sdk: openai.OpenAI) -> None:
    answer = sdk.responses.create(**BODY)
    assert answer.output_text == " 1 2 3"
    assert answer.status == "incomplete"
    assert answer.metadata == {"a": "b"}
    assert sdk.responses.retrieve(answer.id) == answer
    sdk.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(answer.id)


def test_a_response_in_the_background_is_queued_runs_and_ends(
    http: httpx.Client, connection: redis.Redis, make_store: MakeStore
) -> None:
    created = http.post("/responses", json={**BODY, "background": True}).json()
    path = f"/responses/{created['id']}"
    assert (created["status"], created["background"], created["output"]) == ("queued", True, [])
    writer = claimed(make_store(), created["id"].removeprefix("resp_"))
    writer.start()
    writer.tokens(2)
    running = http.get(path).json()
    assert (running["status"], running["output"][0]["content"][0]["text"]) == ("in_progress", " 1 2")
    writer.end()
    assert http.get(path).json()["status"] == "incomplete"


def test_a_stream_that_was_cut_goes_on_byte_for_byte_at_another_gateway(
    start_gateway: StartGateway, redis_url: str, make_store: MakeStore
) -> None:
    first, second = start_gateway(), start_gateway()
    with httpx.Client(timeout=60, verify=NO_TLS) as http:
        with http.stream("POST", f"{first}/responses", json={**BODY, "background": True, "stream": True}) as cut:
            lines = cut.iter_lines()
            head = [next(lines) for _ in range(8)]
            job_id = head[2].split('"resp_')[1].split('"')[0]
            writer = claimed(make_store(), job_id)
            writer.start()
            writer.tokens(1)
            head += [next(lines) for _ in range(12)]
        writer.tokens(2)
        writer.end()
        url = f"{second}/responses/resp_{job_id}?stream=true"
        whole = http.get(url).text
        assert whole.startswith("\n".join(head))
        last_id = head[-4].removeprefix("id: ")
        rest = http.get(f"{url}&starting_after={last_id}").text
        assert "\n".join(head) + "\n" + rest == whole
        assert http.get(url, headers={"Last-Event-ID": last_id}).text == rest
        for event in whole.split("\n\n")[:-1]:
            number = event.split("\n")[0].removeprefix("id: ")
            later = http.get(f"{url}&starting_after={number}").text
            assert whole.endswith(event + "\n\n" + later)


def test_a_response_can_be_cancelled(http: httpx.Client, make_store: MakeStore, redis_url: str) -> None:
    queued = http.post("/responses", json={**BODY, "background": True}).json()
    assert http.post(f"/responses/{queued['id']}/cancel").json()["status"] == "cancelled"
    assert http.post(f"/responses/{queued['id']}/cancel").json()["status"] == "cancelled"
    running = http.post("/responses", json={**BODY, "background": True}).json()
    job_id = running["id"].removeprefix("resp_")
    writer = claimed(make_store(), job_id)
    writer.start()
    assert http.post(f"/responses/{running['id']}/cancel").json()["status"] == "in_progress"
    with Client(redis_url) as client:
        assert client.status(job_id).cancelling


def test_a_running_response_that_is_deleted_is_dropped_by_its_worker(
    http: httpx.Client, make_store: MakeStore, connection: redis.Redis
) -> None:
    created = http.post("/responses", json={**BODY, "background": True}).json()
    writer = claimed(make_store(), created["id"].removeprefix("resp_"))
    writer.start()
    assert http.delete(f"/responses/{created['id']}").json()["deleted"]
    assert not writer.tokens(1)
    assert http.delete(f"/responses/{created['id']}").status_code == 404
    assert connection.zcard(schema.RUNNING) == 0
    assert not [key for key in connection.keys("*") if created["id"].removeprefix("resp_").encode() in key]


def test_nobody_reads_or_ends_what_another_key_began(start_gateway: StartGateway) -> None:
    url = start_gateway(api_keys="one,two")
    one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
    with httpx.Client(timeout=60, base_url=url, verify=NO_TLS) as http:
        created = http.post("/responses", json={**BODY, "background": True}, headers=one).json()
        path = f"/responses/{created['id']}"
        assert http.get(path, headers=one).status_code == 200
        for call in (
            http.get(path, headers=two),
            http.delete(path, headers=two),
            http.post(f"{path}/cancel", headers=two),
        ):
            assert call.status_code == 404
        assert http.get(path, headers=one).json()["status"] == "queued"


def test_a_response_goes_on_from_another_and_that_from_a_third(
    sdk: openai.OpenAI, connection: redis.Redis, worker: AnsweringWorker
) -> None:
    first = sdk.responses.create(model="demo", input="count", instructions="be brief")
    second = sdk.responses.create(model="demo", input="more", previous_response_id=first.id)
    sdk.responses.delete(first.id)
    third = sdk.responses.create(model="demo", input="enough", instructions="be polite", previous_response_id=second.id)
    assert (second.previous_response_id, third.previous_response_id) == (first.id, second.id)
    request = connection.hget(schema.job_key(third.id.removeprefix("resp_")), "request")
    answer = ("assistant", [{"type": "text", "text": " 1 2 3"}])
    assert [(message["role"], message["content"]) for message in json.loads(request)["messages"]] == [
        ("system", "be polite"),
        ("user", "count"),
        answer,
        ("user", "more"),
        answer,
        ("user", "enough"),
    ]


def test_a_response_goes_on_only_from_one_of_the_caller_s_that_has_been_answered(
    start_gateway: StartGateway, served_model: str, make_store: MakeStore
) -> None:
    url = start_gateway(api_keys="one,two")
    one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
    with httpx.Client(timeout=60, base_url=url, verify=NO_TLS) as http:
        created = http.post("/responses", json={**BODY, "background": True}, headers=one).json()["id"]

        def go_on(previous: Any, caller: dict[str, str]) -> Any:
            body = {**BODY, "background": True, "previous_response_id": previous}
            answer = http.post("/responses", json=body, headers=caller)
            return answer.json()["error"] | {"status": answer.status_code}

        unknown = [go_on(created, two), go_on("resp_x", one), go_on("", one)]
        waiting = go_on(created, one)
        writer = claimed(make_store(), created.removeprefix("resp_"))
        writer.start()
        writer.fail()
        failed = go_on(created, one)
        assert {error["code"] for error in unknown} == {"previous_response_not_found"}
        for error, said in ((unknown[0], "no such response"), (waiting, "queued"), (failed, "failed")):
            assert (error["status"], error["param"]) == (400, "previous_response_id")
            assert said in error["message"]


def test_an_item_of_an_answer_may_be_sent_as_its_id(
    sdk: openai.OpenAI, http: httpx.Client, connection: redis.Redis, worker: AnsweringWorker
) -> None:
    def messages_of(*items: dict[str, Any]) -> Any:
        answer = http.post("/responses", json={**BODY, "input": [*items, {"role": "user", "content": "more"}]}).json()
        return json.loads(connection.hget(schema.job_key(answer["id"].removeprefix("resp_")), "request"))["messages"]

    item = sdk.responses.create(**BODY).output[0]
    whole = messages_of(item.model_dump())
    assert [message["role"] for message in whole] == ["assistant", "user"]
    assert messages_of({"type": "item_reference", "id": item.id}) == messages_of({"id": item.id}) == whole


def test_items_that_are_referred_to_are_together_no_longer_than_a_body(
    start_gateway: StartGateway, worker: AnsweringWorker
) -> None:
    with httpx.Client(timeout=60, base_url=start_gateway(max_body_bytes=4096), verify=NO_TLS) as http:
        [item] = http.post("/responses", json=BODY).json()["output"]
        body = {**BODY, "input": [{"id": item["id"]}]}
        assert http.post("/responses", json=body).is_success
        answer = http.post("/responses", json={**body, "input": body["input"] * 60})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_an_item_that_is_not_there_or_another_s_is_not_found(
    start_gateway: StartGateway, served_model: str, make_store: MakeStore
) -> None:
    url = start_gateway(api_keys="one,two")
    one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
    with httpx.Client(timeout=60, base_url=url, verify=NO_TLS) as http:
        job_id = http.post("/responses", json={**BODY, "background": True}, headers=one).json()["id"][5:]

        def refer(item_id: Any, caller: dict[str, str]) -> int:
            reference = {"type": "item_reference", "id": item_id}
            answer = http.post("/responses", json={**BODY, "background": True, "input": [reference]}, headers=caller)
            assert answer.is_success or answer.json()["error"]["param"] == "input[0]"
            return answer.status_code

        writer = claimed(make_store(), job_id)
        writer.start()
        writer.tokens(1)
        assert refer(f"msg_{job_id}", one) == 404, "it is being written"
        writer.end()
        assert refer(f"msg_{job_id}", one) == 200
        assert refer(f"msg_{job_id}", two) == 404
        assert {refer(item_id, one) for item_id in (f"fc_{job_id}_0", f"resp_{job_id}", "msg_x", "", 5, None)} == {404}


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("stream=true&starting_after=x", "starting_after"),
        ("stream=true&starting_after=", "starting_after"),
        ("stream=true&starting_after=1_0", "starting_after"),
        ("starting_after=x", "starting_after"),
        ("stream=yes", "stream"),
        ("stream=", "stream"),
    ],
)
def test_a_place_that_is_none_is_refused(http: httpx.Client, query: str, param: str, worker: AnsweringWorker) -> None:
    created = http.post("/responses", json=BODY).json()
    response = http.get(f"/responses/{created['id']}?{query}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_the_text_of_a_failed_response_is_kept(http: httpx.Client, make_store: MakeStore) -> None:
    created = http.post("/responses", json={**BODY, "background": True}).json()
    writer = claimed(make_store(), created["id"].removeprefix("resp_"))
    writer.start()
    writer.tokens(1)
    writer.fail("POISONED", "given up")
    failed = http.get(f"/responses/{created['id']}").json()
    assert failed["status"] == "failed"
    assert failed["error"] == {"code": "poisoned", "message": "given up"}
    assert failed["output"][0]["content"][0]["text"] == " 1"


@pytest.mark.parametrize("note", ["{", "[]", "null", b"\xff", b"[" * 9000], ids=str)
def test_a_note_that_cannot_be_read_is_an_error_of_that_response(
    http: httpx.Client, connection: redis.Redis, note: str | bytes
) -> None:
    response_id = http.post("/responses", json={**BODY, "background": True}).json()["id"]
    connection.hset(schema.job_key(response_id.removeprefix("resp_")), "note", note)
    for method, path in (("GET", ""), ("GET", "?stream=true"), ("POST", "/cancel")):
        answer = http.request(method, f"/responses/{response_id}{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "log_damaged")
    assert http.delete(f"/responses/{response_id}").status_code == 200
