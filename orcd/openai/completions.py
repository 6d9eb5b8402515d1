"""Completions, OpenAI's older way without messages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from orcd.errors import InvalidRequest
from orcd.openai import logprobs
from orcd.openai.body_fields import BodyFields, is_one_of
from orcd.openai.body_table import COMPLETIONS
from orcd.openai.usage import usage
from orcd.request import Request
from orcd.result import Choice, Result

MAX_TOKENS = 16
"""What OpenAI takes where a body says nothing; a model without end tokens would fill its whole context."""
MAX_PROMPTS = 128
"""Prompts of one body at most: each is a job of its own."""
_NAMES_PROMPT = re.compile(r"prompt[:\[]")


def parse(body: Any, defaults: Mapping[str, Any]) -> Request:
    """The request of a body. Raises `InvalidRequest` naming the field."""
    fields = BodyFields(body, COMPLETIONS)
    fields.require("prompt")
    _read_prompt(fields)
    _read_echo(fields, body)
    return fields.to_request({"max_tokens": MAX_TOKENS, **defaults})


def parse_all(body: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[Request]:
    """The request of each prompt, of which a body may have several. Raises `InvalidRequest` naming the field."""
    prompts = body.get("prompt")
    if not isinstance(prompts, list) or len(prompts) < 2 or not isinstance(prompts[0], str | list):
        return [parse(body, defaults)]
    if len(prompts) > MAX_PROMPTS:
        raise InvalidRequest(f"prompt: {len(prompts)} prompts, at most {MAX_PROMPTS} are for one request; send several")
    found = []
    for index, prompt in enumerate(prompts):
        try:
            if not isinstance(prompt, str | list):
                raise InvalidRequest("prompt: must be text or token ids, as the others")
            found.append(parse({**body, "prompt": [prompt]}, defaults))
        except InvalidRequest as error:
            message = error.message
            raise InvalidRequest(of_prompt(index, message) if _NAMES_PROMPT.match(message) else message) from None
    return found


def of_prompt(index: int, message: str) -> str:
    """An error's message that says which of several prompts it is about."""
    if _NAMES_PROMPT.match(message):
        return f"prompt[{index}]{message.removeprefix('prompt')}"
    return f"prompt[{index}]: {message}"


def response(body: Mapping[str, Any], result: Result, created_s: int) -> dict[str, Any]:
    """The ``text_completion`` object of a job that succeeded."""
    return response_of_all(body, [result], created_s)


def response_of_all(body: Mapping[str, Any], results: Sequence[Result], created_s: int) -> dict[str, Any]:
    """The ``text_completion`` object of the jobs of all prompts, which succeeded: prompt by prompt their choices."""
    if asks_for_no_answer(body):
        nothing = Choice("", [], "length")
        results = [
            msgspec.structs.replace(each, choices=[nothing] * len(each.choices), tokens_out=0) for each in results
        ]
    first = results[0]
    choices: list[dict[str, Any]] = []
    for echoed, result in zip(echoes(body, len(results)), results, strict=True):
        if echoed is None:
            echoed = b"".join(logprobs.prompt_pieces(result)).decode("utf-8", "replace")
        columns = None  # of the prompt, with which those of its choices begin
        if body.get("echo") and body.get("logprobs") is not None:
            columns = logprobs.columns_of_prompt(result, len(echoed))
        listed = logprobs.of_prompt(result) if body.get("prompt_logprobs") is not None else {}
        choices += [
            {**_choice(index, choice, echoed, columns), **listed}
            for index, choice in enumerate(result.choices, len(choices))
        ]
    return {
        "id": f"cmpl-{first.job_id}",
        "object": "text_completion",
        "created": created_s,
        "model": first.model or body.get("model"),
        "choices": choices,
        "usage": usage(*results),
        "system_fingerprint": first.fingerprints[-1] if first.fingerprints else None,
    }


def asks_for_no_answer(body: Mapping[str, Any]) -> bool:
    """Whether only the prompt is wanted, with its log probabilities: ``max_tokens`` 0, which goes with ``echo``.

    A token is drawn for it, as for every request, and left out.
    """
    return bool(body.get("echo")) and is_one_of(body.get("max_tokens"), (0,))


def echoes(body: Mapping[str, Any], num_prompts: int) -> list[str | None]:
    """What the answers to each prompt begin with; None where the results say it, as the prompt is token ids."""
    if not body.get("echo"):
        return [""] * num_prompts
    prompts = body["prompt"]
    if isinstance(prompts, str) or isinstance(prompts[0], int):
        prompts = [prompts]
    return [prompt if isinstance(prompt, str) else None for prompt in prompts]


def _choice(index: int, choice: Choice, echoed: str, before: dict[str, Any] | None) -> dict[str, Any]:
    columns = None
    if choice.logprobs is not None or before is not None:
        columns = logprobs.columns(choice.logprobs or (), len(echoed))
    if columns is not None and before is not None:
        columns = {name: before[name] + column for name, column in columns.items()}
    return {"index": index, "text": echoed + choice.text, "logprobs": columns, "finish_reason": choice.finish_reason}


def _read_prompt(fields: BodyFields) -> None:
    """A prompt may be text or token ids, or a list of one such prompt."""
    prompt = fields.combined.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise InvalidRequest("prompt: only one prompt is supported here; send a request for each")
        prompt = prompt[0]
    if isinstance(prompt, list):
        fields.put("prompt_token_ids", prompt, "prompt")
    elif prompt is not None:
        fields.put("prompt", prompt, "prompt")


def _read_echo(fields: BodyFields, body: Mapping[str, Any]) -> None:
    """Log probabilities are of all tokens of the text then, and the text of token ids is known from theirs."""
    echo = fields.combined.get("echo", False)
    if not isinstance(echo, bool):
        raise InvalidRequest("echo: must be true or false")
    if echo and "logprobs" in fields.request:
        fields.put("prompt_logprobs", fields.request["logprobs"], "logprobs")
    elif echo and "prompt_token_ids" in fields.request:
        fields.request.setdefault("prompt_logprobs", 0)
    if asks_for_no_answer(body):
        fields.request["max_tokens"] = 1
