"""Completions, OpenAI's older way without messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orcd.errors import InvalidRequest
from orcd.openai import logprobs
from orcd.openai.body_fields import BodyFields
from orcd.openai.body_table import COMPLETIONS
from orcd.openai.usage import usage
from orcd.request import Request
from orcd.result import Choice, Result

MAX_TOKENS = 16
"""What OpenAI takes where a body says nothing; a model without end tokens would fill its whole context."""


def parse(body: Any, defaults: Mapping[str, Any]) -> Request:
    """The request of a body. Raises `InvalidRequest` naming the field."""
    fields = BodyFields(body, COMPLETIONS)
    fields.require("prompt")
    _read_prompt(fields)
    _check_echo(fields)
    return fields.to_request({"max_tokens": MAX_TOKENS, **defaults})


def response(body: Mapping[str, Any], result: Result, created_s: int) -> dict[str, Any]:
    """The ``text_completion`` object of a job that succeeded."""
    prompt = body["prompt"] if body.get("echo") else ""
    echoed = prompt[0] if isinstance(prompt, list) else prompt
    return {
        "id": f"cmpl-{result.job_id}",
        "object": "text_completion",
        "created": created_s,
        "model": result.model or body.get("model"),
        "choices": [
            {**_choice(index, choice, echoed), **logprobs.of_prompt(result)}
            for index, choice in enumerate(result.choices)
        ],
        "usage": usage(result),
        "system_fingerprint": result.fingerprints[-1] if result.fingerprints else None,
    }


def _choice(index: int, choice: Choice, echoed: str) -> dict[str, Any]:
    return {
        "index": index,
        "text": echoed + choice.text,
        "logprobs": None if choice.logprobs is None else logprobs.columns(choice.logprobs, len(echoed)),
        "finish_reason": choice.finish_reason,
    }


def _read_prompt(fields: BodyFields) -> None:
    """A prompt may be text or token ids, or a list of one such prompt."""
    prompt = fields.combined.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise InvalidRequest("prompt: only one prompt a request is supported; send a request for each")
        prompt = prompt[0]
    if isinstance(prompt, list):
        fields.put("prompt_token_ids", prompt, "prompt")
    elif prompt is not None:
        fields.put("prompt", prompt, "prompt")


def _check_echo(fields: BodyFields) -> None:
    echo = fields.combined.get("echo", False)
    if not isinstance(echo, bool):
        raise InvalidRequest("echo: must be true or false")
    if echo and "prompt_token_ids" in fields.request:
        raise InvalidRequest("echo: needs a prompt of text")
    if echo and "logprobs" in fields.request:
        raise InvalidRequest("echo: log probabilities of a prompt are not supported with it; ask for prompt_logprobs")
