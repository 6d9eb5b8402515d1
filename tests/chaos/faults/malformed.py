"""Messages that no worker can read, a kind each: somebody's mistakes, and what a broken sender or disk leaves."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from tasks.celery_ext.tasks import GenerateChunkTask, GenerateTask

Envelope = dict[str, Any]

_REQUEST = {"prompt": "old pond", "max_tokens": 2}
_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def malformed_messages() -> dict[str, bytes]:
    """Kind -> the text of a message as it stands in a queue's list."""
    changed = {kind: _changed(number, change) for number, (kind, change) in enumerate(_CHANGES.items())}
    return _TEXTS | {kind: json.dumps(envelope).encode() for kind, envelope in changed.items()}


def _changed(number: int, change: Callable[[Envelope], object]) -> Envelope:
    envelope = {
        "body": _encode([[], _REQUEST, _EMBED]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": GenerateTask.name,
            "id": f"malformed-{number}",
            "root_id": None,
            "parent_id": None,
            "group": None,
            "retries": 0,
            "timelimit": [None, None],
            "eta": None,
            "expires": None,
            "argsrepr": "()",
            "kwargsrepr": "{}",
        },
        "properties": {
            "correlation_id": "malformed",
            "reply_to": "nobody",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "orcd"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": f"malformed-tag-{number}",
        },
    }
    change(envelope)
    return envelope


def _encode(body: Any) -> str:
    return base64.b64encode(json.dumps(body).encode()).decode()


def _body(body: Any) -> Callable[[Envelope], object]:
    return lambda envelope: envelope.update(body=_encode(body))


def _raw_body(body: Any) -> Callable[[Envelope], object]:
    return lambda envelope: envelope.update(body=body)


def _top(name: str, value: Any) -> Callable[[Envelope], object]:
    return lambda envelope: envelope.update({name: value})


def _header(name: str, value: Any) -> Callable[[Envelope], object]:
    return lambda envelope: envelope["headers"].update({name: value})


def _property(name: str, value: Any) -> Callable[[Envelope], object]:
    return lambda envelope: envelope["properties"].update({name: value})


def _chunk(keywords: Any) -> Callable[[Envelope], object]:
    def change(envelope: Envelope) -> None:
        envelope["headers"]["task"] = GenerateChunkTask.name
        envelope["body"] = _encode([[], keywords, _EMBED])

    return change


_TEXTS = {
    "empty": b"",
    "no JSON": b"somebody's own",
    "NUL": b"\x00\x00\x00\x00",
    "no UTF-8": b"\xff\xfe\xfd",
    "torn": b'{"body": "W1tdLCB7fSwge31d", "headers": {"task": "orcd.gen',
    "nested too deep": b"[" * 20_000,
    "a list": b"[]",
    "a list of numbers": b"[1, 2, 3]",
    "a string": b'"old pond"',
    "a number": b"42",
    "null": b"null",
    "true": b"true",
    "an empty object": b"{}",
    "not a number": b"NaN",
}

_CHANGES: dict[str, Callable[[Envelope], object]] = {
    "no body": lambda envelope: envelope.pop("body"),
    "no headers": lambda envelope: envelope.pop("headers"),
    "no properties": lambda envelope: envelope.pop("properties"),
    "no content type": lambda envelope: envelope.pop("content-type"),
    "no content encoding": lambda envelope: envelope.pop("content-encoding"),
    "body null": _raw_body(None),
    "body a number": _raw_body(7),
    "body a list": _raw_body([[], {}, {}]),
    "body not base64": _raw_body("%%%"),
    "body no JSON": _raw_body(base64.b64encode(b"old pond").decode()),
    "body no UTF-8": _raw_body(base64.b64encode(b"\xff\xfe").decode()),
    "body an object": _body({"prompt": "old pond"}),
    "body of one": _body([[]]),
    "body of two": _body([[], {}]),
    "body of four": _body([[], {}, {}, {}]),
    "arguments null": _body([None, _REQUEST, _EMBED]),
    "arguments a number": _body([3, _REQUEST, _EMBED]),
    "keywords null": _body([[], None, _EMBED]),
    "keywords a list": _body([[], [1], _EMBED]),
    "embed null": _body([[], _REQUEST, None]),
    "embed a list": _body([[], _REQUEST, []]),
    "callbacks a string": _body([[], _REQUEST, {**_EMBED, "callbacks": "x"}]),
    "chain of numbers": _body([[], _REQUEST, {**_EMBED, "chain": [1, 2]}]),
    "chord a number": _body([[], _REQUEST, {**_EMBED, "chord": 5}]),
    "headers null": _top("headers", None),
    "headers a list": _top("headers", []),
    "no task": lambda envelope: envelope["headers"].pop("task"),
    "task null": _header("task", None),
    "task unknown": _header("task", "somebody.else"),
    "task a number": _header("task", 5),
    "no id": lambda envelope: envelope["headers"].pop("id"),
    "id null": _header("id", None),
    "id a list": _header("id", ["a"]),
    "id a number": _header("id", 5),
    "id an object": _header("id", {"a": 1}),
    "id empty": _header("id", ""),
    "id too long": _header("id", "x" * 10_000),
    "id of odd characters": _header("id", "a b\n{c}"),
    "eta no time": _header("eta", "tomorrow"),
    "expires no time": _header("expires", "soon"),
    "retries a text": _header("retries", "many"),
    "time limit a text": _header("timelimit", "long"),
    "properties null": _top("properties", None),
    "no delivery info": lambda envelope: envelope["properties"].pop("delivery_info"),
    "no delivery tag": lambda envelope: envelope["properties"].pop("delivery_tag"),
    "delivery tag a number": _property("delivery_tag", 5),
    "body encoding unknown": _property("body_encoding", "rot13"),
    "priority a text": _property("priority", "urgent"),
    "content type pickle": _top("content-type", "application/x-python-serialize"),
    "content type a number": _top("content-type", 5),
    "content encoding unknown": _top("content-encoding", "x-none"),
    "field unknown": _body([[], {"prompt": "x", "colour": "red"}, _EMBED]),
    "field out of range": _body([[], {"prompt": "x", "max_tokens": -1}, _EMBED]),
    "job id unknown": _body([[], {"job_id": "nobody-has-this"}, _EMBED]),
    "job id a list": _body([[], {"job_id": ["a"]}, _EMBED]),
    "positional arguments": _body([["old pond"], {}, _EMBED]),
    "lone surrogate": _body([[], {"prompt": "\ud800"}, _EMBED]),
    "chunk of null": _chunk({"job_ids": None}),
    "chunk of nothing": _chunk({"requests": []}),
    "chunk of numbers": _chunk({"requests": [1, 2]}),
}
