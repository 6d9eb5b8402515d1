"""How tests begin batches and look at what came of them."""

from __future__ import annotations

import json
from typing import Any

import openai

from tests.conftest import wait_until

URL = "/v1/chat/completions"


def line(custom_id: str, url: str = URL, **body: Any) -> str:
    body = {"model": "demo", "messages": [{"role": "user", "content": "count"}], **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


def begin(sdk: openai.OpenAI, *lines: str, endpoint: Any = URL) -> str:
    file = sdk.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    return sdk.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h").id


def ended(sdk: openai.OpenAI, batch_id: str) -> Any:
    wait_until(lambda: sdk.batches.retrieve(batch_id).status in ("completed", "failed", "cancelled", "expired"))
    return sdk.batches.retrieve(batch_id)


def lines_of(sdk: openai.OpenAI, file_id: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in sdk.files.content(file_id).text.splitlines()]
