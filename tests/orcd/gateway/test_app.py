from __future__ import annotations

import gzip
import logging
from typing import Any

import httpx
import pytest
import redis

from orcd.gateway import endpoint
from orcd.store import schema
from orcd.store.commands import timed_redis
from tasks.local.redis_server import RedisServer
from tests.orcd.gateway.conftest import NO_TLS, StartGateway
from tests.orcd.redis_servers import standing_still

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "CANARY"}]}


def serve(connection: redis.Redis, name: str, model: str) -> None:
    """A worker's heartbeat."""
    connection.hset(schema.worker_key(name), mapping={"model": model})
    connection.zadd(schema.WORKERS, {name: 1_000_000})


def test_the_models_are_those_that_workers_serve(http: httpx.Client, connection: redis.Redis) -> None:
    assert http.get("/models").json() == {"object": "list", "data": []}
    serve(connection, "w1", "b/model:7b")
    serve(connection, "w2", "a")
    found = http.get("/models").json()["data"]
    assert [model["id"] for model in found] == ["a", "b/model:7b"]
    assert http.get("/models/b/model:7b").json() == found[1]
    assert http.get("/models/c").status_code == 404


def test_without_the_right_key_nothing_is_answered(start_gateway: StartGateway) -> None:
    with httpx.Client(base_url=start_gateway(api_keys="sk-1"), verify=NO_TLS) as http:
        for path in ("/models", "/responses/x"):
            response = http.get(path, headers={"Authorization": "Bearer sk-2"})
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"
        assert http.get("/models", headers={"Authorization": "Bearer sk-1"}).status_code == 200
        assert http.get("/../health").status_code == 200


def test_a_key_may_use_its_models_as_often_as_it_says(
    start_gateway: StartGateway, connection: redis.Redis, tmp_path: Any
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text('[[keys]]\nname = "a"\nkey = "k"\nmodels = ["demo"]\nrequests_per_minute = 4')
    serve(connection, "w1", "other")
    headers = {"Authorization": "Bearer k"}
    with httpx.Client(base_url=start_gateway(api_key_file=str(path)), headers=headers, verify=NO_TLS) as http:
        assert http.get("/models").json()["data"] == []
        assert http.post("/chat/completions", json={**CHAT, "model": "other"}).status_code == 403
        assert http.post("/chat/completions", json={"messages": CHAT["messages"]}).json()["error"]["param"] == "model"
        assert connection.zcard(schema.QUEUED) == 0
        answers = [http.get("/models") for _ in range(3)]
    # A new minute may have begun in between.
    late = next((answer for answer in answers if answer.status_code == 429), None)
    if late is not None:
        assert 1 <= int(late.headers["retry-after"]) <= 61
        assert late.headers["x-should-retry"] == "true"
    assert connection.keys("orcd:rate:*")
    assert 0 < connection.ttl(connection.keys("orcd:rate:*")[0]) <= 120


def test_a_full_queue_is_a_429_that_says_when_to_try_again(
    http: httpx.Client, connection: redis.Redis, served_model: str
) -> None:
    connection.set(schema.MAX_QUEUED, 0)
    response = http.post("/chat/completions", json=CHAT)
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "queue_full"
    assert response.headers["retry-after"] == "5"
    assert response.headers["x-should-retry"] == "true"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/chat/completions", 405),
        ("POST", "/embeddings", 501),
        ("PUT", "/models", 405),
    ],
)
def test_what_is_not_there_is_refused_as_the_api_does(http: httpx.Client, method: str, path: str, status: int) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["message"]
    assert ("allow" in response.headers) == (status == 405)
    assert len(response.headers["x-request-id"]) == 32


def test_a_method_that_is_not_there_is_told_all_that_are(http: httpx.Client) -> None:
    assert http.put("/files/file-x").headers["allow"] == "DELETE, GET, HEAD"
    assert http.put("/files").headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"null"])
def test_a_body_that_is_no_object_is_refused(http: httpx.Client, body: bytes) -> None:
    response = http.post("/chat/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "it is empty"),
        (b'{"a": "caf\xe9"}', "a text is not UTF-8"),
        (b'{"a": "\\ud83d"}', r"a text may have been cut within a character (\ud800 to \udfff come in pairs)"),
        (b'{"secret": "word"', "Input data was truncated"),
        (b'{"secret": word}', "invalid character (byte 11)"),
    ],
)
def test_what_is_wrong_with_a_body_is_told_without_its_text(http: httpx.Client, body: bytes, said: str) -> None:
    error = http.post("/chat/completions", content=body).json()["error"]
    assert error["message"] == f"the body is not valid JSON in UTF-8: {said}"


def test_a_compressed_body_is_refused_as_such(http: httpx.Client) -> None:
    headers = {"content-encoding": "gzip"}
    response = http.post("/chat/completions", content=gzip.compress(b"{}"), headers=headers)
    assert response.status_code == 415
    assert response.json()["error"]["message"].startswith("content-encoding: ")


def test_a_slash_behind_a_path_redirects_no_caller_with_his_key_to_plain_http(http: httpx.Client) -> None:
    assert http.get("/models/").json()["object"] == "list"
    assert http.post("/chat/completions/", content=b"{}").status_code == 400
    assert http.get("/nothing/").status_code == 404


def test_a_body_that_is_too_long_is_refused(start_gateway: StartGateway) -> None:
    with httpx.Client(base_url=start_gateway(max_body_bytes=1000), verify=NO_TLS) as http:
        response = http.post("/chat/completions", content=b"x" * 1001)
        assert response.status_code == 413


def test_browsers_may_call_from_the_origins_that_are_named(start_gateway: StartGateway, url: str) -> None:
    headers = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    with httpx.Client(verify=NO_TLS) as http:
        assert "access-control-allow-origin" not in http.options(f"{url}/chat/completions", headers=headers).headers
        other = start_gateway(cors_origins="https://a.example")
        allowed = http.options(f"{other}/chat/completions", headers=headers)
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"


def test_a_fault_of_ours_is_answered_and_logged_without_its_text(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("CANARY")

    monkeypatch.setattr(endpoint.Call, "check_model", fail)
    with caplog.at_level(logging.ERROR):
        response = http.post("/chat/completions", json=CHAT)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal"
    assert response.headers["x-request-id"] in caplog.text
    assert "ValueError" in caplog.text
    assert "CANARY" not in caplog.text + response.text


def test_a_redis_that_is_away_is_a_503(start_gateway: StartGateway, redis_url: str) -> None:
    with httpx.Client(base_url=start_gateway(redis_url="redis://127.0.0.1:1/0"), verify=NO_TLS) as http:
        for response in (http.get("/models"), http.post("/chat/completions", json=CHAT), http.get("/../health")):
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "redis_unavailable"


@pytest.mark.parametrize("path", ["/../health", "/batches", f"/responses/resp_{'0' * 32}", "/models"])
def test_a_redis_that_stands_still_is_a_503_in_time(
    start_gateway: StartGateway, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(timed_redis, "ANSWER_TIMEOUT_S", 0.5)
    url = start_gateway(redis_url=redis_server.url)
    with standing_still(redis_server), httpx.Client(base_url=url, timeout=20, verify=NO_TLS) as http:
        response = http.get(path)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "redis_unavailable")
