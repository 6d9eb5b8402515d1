"""``/v1/models``: what can be asked for now."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from orcd.gateway.api_error import model_not_served
from orcd.gateway.endpoint import Call, endpoint, json_response


@endpoint
async def list_models(call: Call) -> Response:
    """The models that workers serve and that the caller may use."""
    return json_response({"object": "list", "data": await _models(call)})


@endpoint
async def retrieve_model(call: Call) -> Response:
    """One of them."""
    name = call.request.path_params["model"]
    for model in await _models(call):
        if model["id"] == name:
            return json_response(model)
    raise model_not_served()


async def _models(call: Call) -> list[dict[str, Any]]:
    created: dict[str, int] = {}
    for worker in await call.gateway.client.workers():
        if worker.model and call.key.may_use(worker.model):
            started_s = worker.last_seen_ms // 1000 - worker.uptime_s
            created[worker.model] = min(created.get(worker.model, started_s), started_s)
    return [
        {"id": name, "object": "model", "created": started_s, "owned_by": "orcd"}
        for name, started_s in sorted(created.items())
    ]
