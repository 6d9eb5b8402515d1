"""The page for Prometheus, as a gateway makes it."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import openai
from prometheus_client.parser import text_string_to_metric_families

from orcd.gateway.app import create_app
from orcd.gateway.settings import GatewaySettings
from tests.conftest import wait_until
from tests.orcd.answering_worker import AnsweringWorker

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"


def values(http: httpx.Client) -> dict[tuple[str, ...], float]:
    """The values on the page by the metric's name and its labels' values."""
    page = http.get(str(http.base_url).replace("/v1", "") + "metrics")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/plain")
    samples = [sample for family in text_string_to_metric_families(page.text) for sample in family.samples]
    labels = ("path", "method", "status", "le")
    return {
        (each.name, *(each.labels[label] for label in labels if label in each.labels)): each.value for each in samples
    }


def test_requests_are_counted_by_path_method_and_status(
    http: httpx.Client, sdk: openai.OpenAI, worker: AnsweringWorker
) -> None:
    chat = {"model": "demo", "messages": [{"role": "user", "content": "count"}]}
    path = "/v1/chat/completions"
    assert http.post("chat/completions", json=chat).status_code == 200
    assert len(http.post("chat/completions", json={**chat, "stream": True}).text.splitlines()) > 3
    assert http.post("chat/completions", json={**chat, "model": "canary"}).status_code == 404
    assert http.get("responses/resp_canary").status_code == 404
    assert http.request("CANARY", "nothing/canary").status_code in (404, 405)
    found = values(http)
    assert found["orcd_gateway_requests_total", path, "POST", "200"] == 2
    assert found["orcd_gateway_requests_total", path, "POST", "404"] == 1
    assert found["orcd_gateway_requests_total", "/v1/responses/{id}", "GET", "404"] == 1
    assert any(key[:3] == ("orcd_gateway_requests_total", "other", "other") for key in found)
    assert (
        found["orcd_gateway_request_seconds_count", path] == found["orcd_gateway_first_byte_seconds_count", path] == 3
    )
    assert found["orcd_gateway_first_byte_seconds_sum", path] <= found["orcd_gateway_request_seconds_sum", path]
    assert not any("canary" in label.lower() for key in found for label in key)


def test_a_caller_who_leaves_before_there_is_an_answer_has_a_status_of_his_own(http: httpx.Client) -> None:
    place = http.base_url
    with socket.create_connection((place.host, place.port or 80)) as cut:
        cut.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        wait_until(lambda: values(http)["orcd_gateway_requests_running",] == 2)  # with the one that asks
    wait_until(lambda: ("orcd_gateway_requests_total", "/v1/completions", "POST", "499") in values(http))
    assert values(http)["orcd_gateway_requests_running",] == 1


def test_every_metric_is_in_the_docs(http: httpx.Client) -> None:
    names = {key[0] for key in values(http)} | {"orcd_gateway_requests_total"}
    for name in names:
        metric = name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum")
        assert f"`{metric}" in DOCS.read_text()


def test_two_gateways_in_one_process_count_apart() -> None:
    create_app(GatewaySettings())
    create_app(GatewaySettings())
