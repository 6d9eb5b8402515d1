from __future__ import annotations

import json
import re

from starlette.routing import Route

from orcd.gateway.app import create_app
from orcd.gateway.openapi import DOCUMENT
from orcd.gateway.settings import GatewaySettings


def test_the_description_has_every_route_of_the_api_and_no_other() -> None:
    routes = set()
    for route in create_app(GatewaySettings()).routes:
        assert isinstance(route, Route)
        path = re.sub(r"\{\w+(:path)?\}", "{id}", route.path)
        if path.startswith("/v1/") and not path.endswith(".json"):
            routes |= {(path, method.lower()) for method in (route.methods or ()) if method != "HEAD"}
    assert routes == {(path, method) for path, operations in DOCUMENT["paths"].items() for method in operations}


def test_each_parameter_of_a_path_is_described() -> None:
    for path, operations in DOCUMENT["paths"].items():
        for operation in operations.values():
            named = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
            assert named == set(re.findall(r"\{(\w+)\}", path))


def test_each_schema_that_is_named_is_there() -> None:
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DOCUMENT)))
    assert named <= DOCUMENT["components"]["schemas"].keys()
    assert '"#/$defs' not in json.dumps(DOCUMENT)
