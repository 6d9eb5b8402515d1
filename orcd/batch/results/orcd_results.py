"""orcd's own results and errors: flat objects with the line's number and id."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from orcd.batch.line import Line, LineName
from orcd.errors import OrcdError
from orcd.result import Choice, Result


class OrcdResults:
    """See `ResultFormat`."""

    START: ClassVar = b'{"line":'

    def result(self, line: Line, result: Result) -> dict[str, Any]:
        """See `ResultFormat`."""
        return {**_named(line.name), **record(result)}

    def failure(self, name: LineName, error: OrcdError) -> dict[str, Any]:
        """See `ResultFormat`."""
        return {**_named(name), "code": error.code, "message": error.message}

    def job_id(self, text: bytes) -> str:
        """See `ResultFormat`."""
        return _written.decode(text).job_id


def record(result: Result) -> dict[str, Any]:
    """A successful result as it is written: the first choice's text, and all choices where one text is not enough."""
    first = result.choices[0] if result.choices else Choice()
    choices = [msgspec.to_builtins(choice, str_keys=True) for choice in result.choices]
    parts = first.logprobs, first.reasoning, first.tool_calls
    whole = len(choices) > 1 or any(part is not None for part in parts)
    prompt = msgspec.to_builtins(result.prompt_logprobs, str_keys=True)
    return {
        "text": first.text,
        **({"choices": choices} if whole else {}),
        "finish_reason": first.finish_reason,
        "tokens_in": result.tokens_in,
        "tokens_out": result.tokens_out,
        "queue_ms": result.queue_ms,
        "ttft_ms": result.ttft_ms,
        "decode_ms": result.decode_ms,
        **({} if result.schema_valid is None else {"schema_valid": result.schema_valid}),
        **({} if prompt is None else {"prompt_logprobs": prompt}),
    }


def _named(name: LineName) -> dict[str, Any]:
    file = {} if name.file is None else {"file": name.file}
    job = {} if name.job_id is None else {"job_id": name.job_id}
    return {"line": name.place.number, **file, "id": name.id, **job}


class _Written(msgspec.Struct):
    job_id: str


_written = msgspec.json.Decoder(_Written)
