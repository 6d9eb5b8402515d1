"""Lists, a page at a time, as OpenAI's API has them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from orcd.gateway.api_error import ApiError
from orcd.gateway.endpoint import Call


def page(call: Call, items: Sequence[Any], *, limit: int, most: int) -> dict[str, Any]:
    """The part of ``items``, which have ids, that the query's ``after`` and ``limit`` ask for. Raises `ApiError`.

    ``limit`` is how many they are where the query does not say it, ``most`` how many it may ask for.
    """
    query = call.request.query_params
    asked = query.get("limit", str(limit))
    if re.fullmatch("[0-9]{1,9}", asked) is None or not 1 <= int(asked) <= most:
        raise ApiError(400, f"limit: must be 1 to {most}", param="limit")
    start = 0
    if after := query.get("after"):
        places = [place for place, item in enumerate(items) if item.id == after]
        if not places:
            raise ApiError(400, "after: must be the id of an item of this list", param="after")
        start = places[0] + 1
    data = items[start : start + int(asked)]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0].id if data else None,
        "last_id": data[-1].id if data else None,
        "has_more": start + len(data) < len(items),
    }
