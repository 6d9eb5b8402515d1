"""A generation request as applications write it, and the checks that make bad ones fail by name."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from orcd.errors import InvalidRequest, is_unicode
from orcd.sampling import SamplingFields, SamplingKeywords, TokenId, convert, prepared
from orcd.structured_output import ResponseFormat, StructuredOutput, StructuredOutputs

MAX_REQUEST_BYTES = 16 * 1024 * 1024

TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
"""The kinds of parts that a message's content may have, and the key of each one's text."""

_OTHER_NAMES = {
    "input": "prompt",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "reasoning_effort": "chat_template_kwargs",
    "service_tier": "priority",
    "top_logprobs": "logprobs",
}
"""Names that OpenAI's bodies have for fields of a request. `orcd.openai` reads those bodies."""

Text = Annotated[str, Meta(max_length=4 * 1024 * 1024)]


class NamedTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tool that must be called."""

    name: str


@prepared
class Request(SamplingFields, frozen=True, kw_only=True):
    """One generation job. Exactly one of ``prompt``, ``messages`` and ``prompt_token_ids`` is given.

    ``prompt`` is completed as it stands; ``messages`` go through the model's chat template; ``prompt_token_ids`` are
    used untouched. ``model`` None takes any worker. ``priority`` 0 is the most urgent of 0 to 9. Of the jobs of a
    queue and priority that have a ``tenant``, each tenant's are started in turn. ``deadline_s`` counts from
    submission. ``on_disconnect`` "cancel" ends a job that has had no listener for a while.

    ``tools`` are functions as chat completions of OpenAI have them, for the chat template; ``chat_template_kwargs`` are
    further variables of it. ``tool_choice`` "required", or a tool's name, has the answer be calls of tools, or of that
    one, and nothing else. Without ``parallel_tool_calls`` an answer ends with its first call. With
    ``add_generation_prompt`` the answer is a new message; with ``continue_final_message`` instead the last message goes
    on. ``special_tokens_in_content`` says what the spelling of a control token in the text of a message is: "parse"
    takes it for the token, "escape" for the text that it is.

    ``response_format`` or ``structured_outputs`` say what form the answer must have (`orcd.structured_output`).

    `orcd.sampling.SamplingFields` has the sampling parameters and what they mean. ``max_tokens`` None means what the
    context leaves. ``seed`` None gets one on submission, so that whoever resumes the job draws the same tokens.
    """

    prompt: Text | None = None
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=10_000)] | None = None
    prompt_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=4 * 1024 * 1024)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=1024)] | None = None
    tool_choice: Literal["auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    chat_template_kwargs: Annotated[dict[str, Any], Meta(max_length=256)] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    special_tokens_in_content: Literal["parse", "escape"] = "parse"
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    model: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    priority: Annotated[int, Meta(ge=0, le=9)] = 5
    tenant: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    deadline_s: Annotated[float, Meta(gt=0, le=30 * 24 * 3600)] | None = None
    on_disconnect: Literal["continue", "cancel"] = "continue"

    def with_seed(self, job_id: str) -> Request:
        """The request with a seed, if it has none: one that the job's id gives, so that ids drawn at random differ.

        A job that Redis has forgotten and that comes again under its id so draws the tokens that its readers have seen.
        """
        if self.seed is not None:
            return self
        digest = hashlib.sha256(job_id.encode()).digest()
        return msgspec.structs.replace(self, seed=int.from_bytes(digest[:8], "little") >> 1)


class RequestFields(SamplingKeywords, total=False):
    """The fields of a `Request` as keyword arguments; what each one means and may be is said there."""

    prompt: str | None
    messages: Sequence[Mapping[str, Any]] | None
    prompt_token_ids: list[int] | tuple[int, ...] | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: Literal["auto", "required"] | Mapping[str, str]
    parallel_tool_calls: bool
    chat_template_kwargs: Mapping[str, Any] | None
    add_generation_prompt: bool
    continue_final_message: bool
    special_tokens_in_content: Literal["parse", "escape"]
    response_format: Mapping[str, Any] | None
    structured_outputs: Mapping[str, Any] | None
    model: str | None
    priority: int
    tenant: str | None
    deadline_s: float | None
    on_disconnect: Literal["continue", "cancel"]


def structured_output(request: Request) -> StructuredOutput | None:
    """The form that the answer must have, None if it may have any. Raises `InvalidRequest` naming the field."""
    ways = [way.structured_output() for way in (request.response_format, request.structured_outputs) if way]
    given = [way for way in ways if way is not None]
    if len(given) > 1:
        raise InvalidRequest("structured_outputs: response_format says what form the answer has; give one of the two")
    return given[0] if given else None


def with_defaults(fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request, and of ``defaults`` what they say nothing about."""
    ways = {"response_format", "structured_outputs"}  # to say one thing
    left_out = ways if ways & fields.keys() else ()
    return {**{name: value for name, value in defaults.items() if name not in left_out}, **fields}


def parse(fields: Any) -> Request:
    """Check the fields of a request (a mapping of plain values). Raises `InvalidRequest` naming the field.

    ``stop`` may also be one string.
    """
    if not isinstance(fields, dict):
        raise InvalidRequest("a request must be an object of named fields")
    for other, name in _OTHER_NAMES.items():
        if other in fields:
            raise InvalidRequest(f"{other}: unknown field; did you mean {name}?")
    if isinstance(fields.get("stop"), str):
        fields = {**fields, "stop": [fields["stop"]]}
    request = convert(fields, Request)
    _check(request)
    return request


def decode(text: bytes) -> Request:
    """`parse` for a request as JSON text; raises `InvalidRequest`."""
    if len(text) > MAX_REQUEST_BYTES:
        raise InvalidRequest(f"the request has {len(text)} bytes; at most {MAX_REQUEST_BYTES} are allowed")
    try:
        return parse(msgspec.json.decode(text))
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest("the request is not valid JSON in UTF-8") from None
    except RecursionError:
        raise InvalidRequest("the request is nested too deeply") from None


def encode(request: Request) -> bytes:
    """The request as JSON, defaults left out. Raises `InvalidRequest` on text that UTF-8 cannot express."""
    try:
        for name in ("messages", "tools", "chat_template_kwargs"):
            _check_json(name, getattr(request, name))
        encoded = msgspec.json.encode(request)
    except UnicodeEncodeError:
        raise InvalidRequest("the request holds a lone surrogate, which is not valid Unicode text") from None
    if len(encoded) > MAX_REQUEST_BYTES:
        raise InvalidRequest(f"the request has {len(encoded)} bytes; at most {MAX_REQUEST_BYTES} are allowed")
    return encoded


def _check_json(name: str, value: Any) -> None:
    """Raises `InvalidRequest` for what JSON has no form for: msgspec turns bytes and NaN into something else."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise InvalidRequest(f"{name}: values must be plain JSON") from None


def _check(request: Request) -> None:
    given = [name for name in ("prompt", "messages", "prompt_token_ids") if getattr(request, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise InvalidRequest(f"give exactly one of prompt, messages and prompt_token_ids; found {found}")
    for name in ("model", "tenant"):
        if not is_unicode(getattr(request, name) or ""):
            raise InvalidRequest(f"{name}: holds a lone surrogate, which is not valid Unicode text")
    if request.prompt == "":
        raise InvalidRequest("prompt: must not be empty")
    if request.deadline_s is not None and not math.isfinite(request.deadline_s):
        raise InvalidRequest("deadline_s: must be a finite number")
    if request.max_tokens is not None and request.min_tokens > request.max_tokens:
        raise InvalidRequest("min_tokens: must not exceed max_tokens")
    if structured_output(request) is not None and request.min_tokens:
        raise InvalidRequest("min_tokens: must be 0 with structured output, as a document may end earlier")
    if request.tool_choice != "auto":
        _check_tool_choice(request)
    if not request.parallel_tool_calls and request.min_tokens:
        raise InvalidRequest("min_tokens: must be 0 without parallel_tool_calls, as an answer ends with its first call")
    if request.continue_final_message and request.add_generation_prompt:
        raise InvalidRequest("continue_final_message: needs add_generation_prompt false")
    for index, message in enumerate(request.messages or ()):
        if not isinstance(message.get("role"), str):
            raise InvalidRequest(f"messages[{index}]: needs a role, such as user")
        content = message.get("content")
        if not isinstance(content, str | list | None):
            raise InvalidRequest(f"messages[{index}].content: must be text or a list of parts")
        for place, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict):
                _check_part(part, f"messages[{index}].content[{place}]")


def _check_tool_choice(request: Request) -> None:
    if request.messages is None or not request.tools:
        raise InvalidRequest("tool_choice: needs messages and tools")
    if request.structured_outputs is not None or request.min_tokens:
        raise InvalidRequest("tool_choice: required and named tools go without structured_outputs and min_tokens")
    named = [tool["function"].get("name") if isinstance(tool.get("function"), dict) else None for tool in request.tools]
    for index, name in enumerate(named):
        if not isinstance(name, str):
            raise InvalidRequest(f"tools[{index}].function: must be an object with a name")
    if isinstance(request.tool_choice, NamedTool) and request.tool_choice.name not in named:
        raise InvalidRequest("tool_choice: names a tool that is not among the tools")


def _check_part(part: dict[str, Any], where: str) -> None:
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in TEXT_PARTS:
        named = f"{kind[:40]} parts are" if isinstance(kind, str) else "parts without a type are"
        raise InvalidRequest(f"{where}: {named} not supported; a model here reads text only")
    if not isinstance(part.get(TEXT_PARTS[kind]), str):
        raise InvalidRequest(f"{where}.{TEXT_PARTS[kind]}: must be text")
