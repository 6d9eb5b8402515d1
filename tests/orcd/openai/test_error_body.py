"""Errors as OpenAI's API tells them."""

from __future__ import annotations

import pytest

from orcd import errors
from orcd.errors import InvalidRequest, ModelNotServed, OrcdError
from orcd.openai.error_body import error_body, error_type, status_code


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("temperature: expected `float` >= 0.0", "temperature"),
        ("messages[2].content[0]: image_url parts are not supported", "messages[2].content[0]"),
        ("suffix is not supported: use the prompt", "suffix"),
        ("text.format is not supported", "text.format"),
        ("the request is not valid JSON in UTF-8", None),
    ],
)
def test_a_callers_mistake_names_its_field(message: str, param: str | None) -> None:
    assert error_body(InvalidRequest(message)) == {
        "error": {"message": message, "type": "invalid_request_error", "param": param, "code": "invalid_request"}
    }


def test_a_model_that_nobody_serves_has_openais_code() -> None:
    error = ModelNotServed("no worker serves the model")
    assert status_code(error) == 404
    assert error_body(error)["error"]["code"] == "model_not_found"


def test_a_fault_of_ours_names_no_field() -> None:
    error = errors.EngineLost("engine: it died")
    assert status_code(error) == 503
    assert error_body(error)["error"] == {
        "message": "engine: it died",
        "type": "server_error",
        "param": None,
        "code": "engine_lost",
    }


def test_a_full_queue_is_a_rate_limit() -> None:
    error = errors.QueueFull("too many jobs wait")
    assert status_code(error) == 429
    assert error_body(error)["error"]["type"] == "requests"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "invalid_request_error"),
        (404, "invalid_request_error"),
        (429, "requests"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_a_status_has_openais_type(status: int, kind: str) -> None:
    assert error_type(status) == kind


@pytest.mark.parametrize("kind", errors.BY_CODE.values())
def test_every_error_has_a_status(kind: type[OrcdError]) -> None:
    assert 400 <= status_code(kind("x")) <= 599
