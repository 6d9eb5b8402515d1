"""How many requests a key may make, counted in Redis for all gateways together."""

from __future__ import annotations

import time
from typing import Any

from orcd.gateway.api_error import ApiError
from orcd.gateway.api_keys import ApiKey
from orcd.store import schema

WINDOW_S = 60


async def count_request(redis: Any, prefix: str, key: ApiKey) -> None:
    """Count a request of this key. Raises `ApiError` 429 if it has made too many in this minute."""
    if not key.requests_per_minute:
        return
    now = time.time()
    window = int(now // WINDOW_S)
    name = schema.rate_key(key.tag, window, prefix)
    async with redis.pipeline(transaction=False) as pipeline:
        pipeline.incr(name)
        pipeline.expire(name, 2 * WINDOW_S)
        count, _ = await pipeline.execute()
    if count > key.requests_per_minute:
        left_s = int((window + 1) * WINDOW_S - now) + 1
        raise ApiError(
            429,
            f"this key may make {key.requests_per_minute} requests a minute; try again in {left_s} s",
            code="rate_limit_exceeded",
            retry_after_s=left_s,
        )
