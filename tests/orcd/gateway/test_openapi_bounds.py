"""What the description forbids is refused: values just outside each of its bounds.

No model is served here and no file is there. So what is taken is answered with 404.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from orcd.gateway.openapi import DOCUMENT
from tests.orcd.gateway.conftest import NO_TLS, StartGateway
from tests.orcd.gateway.schema_bounds import SchemaBounds

OPERATIONS = [
    (method, path, operation) for path, methods in DOCUMENT["paths"].items() for method, operation in methods.items()
]
BOUNDS = SchemaBounds(DOCUMENT)


@pytest.fixture
def gateway(start_gateway: StartGateway, tmp_path: Path) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=start_gateway(files_dir=str(tmp_path)).removesuffix("/v1"), timeout=60, verify=NO_TLS
    ) as client:
        yield client


def schemas_of(kind: str) -> list[tuple[str, dict[str, Any]]]:
    """The paths that take bodies of a kind, and the schemas of these."""
    bodies = [
        (path, operation["requestBody"]["content"]) for _, path, operation in OPERATIONS if "requestBody" in operation
    ]
    return [(path, content[kind]["schema"]) for path, content in bodies if kind in content]


def texts_outside(schema: dict[str, Any]) -> list[str]:
    """As queries have them: a number is outside the bounds of a text only as a value, and a query has none."""
    kinds = (str,) if schema["type"] == "string" else (str, int, float)
    return [str(value) for value in BOUNDS.forbidden(schema) if isinstance(value, kinds)]


@pytest.mark.parametrize(("path", "schema"), schemas_of("application/json"))
def test_a_body_outside_a_bound_is_refused(path: str, schema: dict[str, Any], gateway: httpx.Client) -> None:
    statuses = {json.dumps(body): gateway.post(path, json=body).status_code for body in BOUNDS.forbidden(schema)}
    assert len(statuses) > 50
    assert {body[:200]: status for body, status in statuses.items() if status != 400} == {}


@pytest.mark.parametrize(("path", "schema"), schemas_of("multipart/form-data"))
def test_a_form_outside_a_bound_is_refused(path: str, schema: dict[str, Any], gateway: httpx.Client) -> None:
    forms = [form for form in BOUNDS.forbidden(schema) if isinstance(form, dict) and all(map(is_text, form.values()))]
    assert len(forms) > 3
    for form in forms:
        files = {"file": form.pop("file")} if "file" in form else None
        assert gateway.post(path, data=form, files=files).status_code == 400, form


def test_a_parameter_outside_a_bound_is_refused(gateway: httpx.Client) -> None:
    named = set()
    for method, path, operation in OPERATIONS:
        for parameter in operation["parameters"]:
            if parameter["in"] != "query":
                continue
            for text in texts_outside(parameter["schema"]):
                named.add(parameter["name"])
                answer = gateway.request(method, path.replace("{id}", "x"), params={parameter["name"]: text})
                assert answer.status_code == 400, answer.url
    assert named == {"limit", "order", "purpose", "starting_after", "stream"}


def is_text(value: object) -> bool:
    return isinstance(value, str)
