"""Messages that no sender of Celery's makes: one valid message, and what is broken in each of the others."""

from __future__ import annotations

import base64
import copy
import json
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

Envelope = dict[str, Any]


def envelope(task_id: str, task: str, fields: dict[str, Any]) -> Envelope:
    """What Celery sends for a task with keyword arguments."""
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return {
        "body": _encoded([[], fields, embed]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": task,
            "id": task_id,
            "root_id": task_id,
            "parent_id": None,
            "group": None,
            "argsrepr": "()",
            "kwargsrepr": "{}",
            "timelimit": [None, None],
            "retries": 0,
            "eta": None,
            "expires": None,
            "origin": "test",
            "ignore_result": False,
        },
        "properties": {
            "correlation_id": task_id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "celery"},
            "priority": 5,
            "body_encoding": "base64",
            "delivery_tag": f"tag-{task_id}",
        },
    }


def _encoded(value: Any) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def _without(*path: str) -> Callable[[Envelope], None]:
    def change(message: Envelope) -> None:
        for key in path[:-1]:
            message = message[key]
        del message[path[-1]]

    return change


def _with(value: Any, *path: str) -> Callable[[Envelope], None]:
    def change(message: Envelope) -> None:
        for key in path[:-1]:
            message = message[key]
        message[path[-1]] = value

    return change


@cache
def _compressed(num_megabytes: int) -> str:
    """Zlib's format of spaces: one megabyte is compressed, and its block repeated."""
    spaces = b" " * 1_000_000
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    block = compressor.compress(spaces) + compressor.flush(zlib.Z_FULL_FLUSH)
    checksum = 1
    for _ in range(num_megabytes):
        checksum = zlib.adler32(spaces, checksum)
    stream = b"\x78\x9c" + num_megabytes * block + b"\x03\x00"  # before its checksum, with a last block that is empty
    return base64.b64encode(stream + checksum.to_bytes(4)).decode()


def _with_a_bomb(message: Envelope) -> None:
    message["headers"]["compression"] = "application/x-gzip"
    message["body"] = _compressed(100)


def _protocol_1(**body: Any) -> Callable[[Envelope], None]:
    """Celery's older protocol, which has all of a task in its body."""

    def change(message: Envelope) -> None:
        message["headers"] = {}
        message["body"] = _encoded(body)

    return change


def _nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


TEXTS: dict[str, bytes] = {
    "empty": b"",
    "no-json": b"hello",
    "half-a-message": b'{"body": "W1tdLC',
    "list": b"[1, 2]",
    "string": b'"hello"',
    "number": b"17",
    "null": b"null",
    "nul": b"\x00",
    "no-utf-8": b"\xff\xfe\x00",
    "pickle": b"\x80\x04K\x01.",
    "deep-list": _nested(100_000),
    "empty-object": b"{}",
    "infinite-number": b'{"properties": {"delivery_tag": 1e999}}',
    "lone-surrogate": b'{"properties": {"delivery_tag": "\\ud800"}, "body": "\\ud800"}',
}
"""Whole texts."""

CHANGES: dict[str, Callable[[Envelope], None]] = {
    "properties-missing": _without("properties"),
    "properties-null": _with(None, "properties"),
    "properties-list": _with([], "properties"),
    "delivery-info-list": _with([], "properties", "delivery_info"),
    "body-encoding-unknown": _with("rot13", "properties", "body_encoding"),
    "body-encoding-number": _with(64, "properties", "body_encoding"),
    "body-missing": _without("body"),
    "body-null": _with(None, "body"),
    "body-list": _with([1], "body"),
    "body-object": _with({"a": 1}, "body"),
    "body-number": _with(7, "body"),
    "body-no-base64": _with("%%%", "body"),
    "body-no-json": _with(base64.b64encode(b"hello").decode(), "body"),
    "body-a-number": _with(_encoded(7), "body"),
    "body-an-object": _with(_encoded({"task": "tasks.generate"}), "body"),
    "body-too-short": _with(_encoded([[]]), "body"),
    "body-too-long": _with(_encoded([[], {}, {}, 1]), "body"),
    "body-deep": _with(base64.b64encode(_nested(50_000)).decode(), "body"),
    "kwargs-null": _with(_encoded([[], None, {}]), "body"),
    "kwargs-list": _with(_encoded([[], [1], {}]), "body"),
    "kwargs-string": _with(_encoded([[], "ab", {}]), "body"),
    "args-null": _with(_encoded([None, {}, {}]), "body"),
    "args-number": _with(_encoded([3, {}, {}]), "body"),
    "embed-null": _with(_encoded([[], {}, None]), "body"),
    "embed-list": _with(_encoded([[], {}, [1]]), "body"),
    "content-type-missing": _without("content-type"),
    "content-type-null": _with(None, "content-type"),
    "content-type-unknown": _with("application/x-none", "content-type"),
    "content-type-pickle": _with("application/x-python-serialize", "content-type"),
    "content-type-list": _with([1], "content-type"),
    "content-encoding-missing": _without("content-encoding"),
    "content-encoding-unknown": _with("utf-99", "content-encoding"),
    "content-encoding-binary": _with("binary", "content-encoding"),
    "headers-missing": _without("headers"),
    "headers-null": _with(None, "headers"),
    "headers-list": _with([1], "headers"),
    "headers-string": _with("task", "headers"),
    "id-missing": _without("headers", "id"),
    "id-null": _with(None, "headers", "id"),
    "id-list": _with(["a"], "headers", "id"),
    "id-object": _with({"a": 1}, "headers", "id"),
    "id-number": _with(7, "headers", "id"),
    "task-missing": _without("headers", "task"),
    "task-null": _with(None, "headers", "task"),
    "task-list": _with(["tasks.generate"], "headers", "task"),
    "task-unknown": _with("someone.elses", "headers", "task"),
    "eta-no-time": _with("tomorrow", "headers", "eta"),
    "eta-number": _with(5, "headers", "eta"),
    "expires-no-time": _with("never", "headers", "expires"),
    "expires-list": _with([1], "headers", "expires"),
    "timelimit-string": _with("fast", "headers", "timelimit"),
    "timelimit-short": _with([1], "headers", "timelimit"),
    "retries-string": _with("many", "headers", "retries"),
    "retries-null": _with(None, "headers", "retries"),
    "compression-unknown": _with("brotli9", "headers", "compression"),
    "compression-of-nothing": _with("gzip", "headers", "compression"),
    "priority-string": _with("high", "properties", "priority"),
    "reply-to-list": _with([1], "properties", "reply_to"),
    "correlation-id-list": _with([1], "properties", "correlation_id"),
    "stamps-string": _with("x", "headers", "stamps"),
    "group-list": _with([1], "headers", "group"),
    "group-index-huge": _with(10**30, "headers", "group_index"),
    "shadow-list": _with(["a"], "headers", "shadow"),
    "root-id-object": _with({"a": 1}, "headers", "root_id"),
    "parent-id-number": _with(1, "headers", "parent_id"),
    "ignore-result-string": _with("yes", "headers", "ignore_result"),
    "stamped-headers-string": _with("x", "headers", "stamped_headers"),
    "header-lone-surrogate": _with("\ud800", "headers", "x-trace"),
    "header-with-a-broken-datetime": _with({"__type__": "datetime", "__value__": "?"}, "headers", "x-time"),
    "retries-infinite": _with(float("inf"), "headers", "retries"),
    "retries-negative": _with(-1, "headers", "retries"),
    "timelimit-nan": _with([float("nan"), None], "headers", "timelimit"),
    "timelimit-huge": _with([1e300, None], "headers", "timelimit"),
    "eta-before-time": _with("0001-01-01T00:00:00+14:00", "headers", "eta"),
    "id-empty": _with("", "headers", "id"),
    "id-long": _with("i" * 5000, "headers", "id"),
    "task-like-a-prompt": _with("write a haiku", "headers", "task"),
    "priority-infinite": _with(float("inf"), "properties", "priority"),
    "compression-list": _with([1], "headers", "compression"),
    "compression-cut-off": _with("application/x-bz2", "headers", "compression"),
    "compression-bomb": _with_a_bomb,
    "callbacks-string": _with(_encoded([[], {}, {"callbacks": "next"}]), "body"),
    "callbacks-of-numbers": _with(_encoded([[], {}, {"callbacks": [1]}]), "body"),
    "errbacks-without-a-task": _with(_encoded([[], {}, {"errbacks": [{"args": []}]}]), "body"),
    "chain-object": _with(_encoded([[], {}, {"chain": {}}]), "body"),
    "chord-list": _with(_encoded([[], {}, {"chord": [1]}]), "body"),
    "protocol-1-without-an-id": _protocol_1(task="orcd.generate", args=[], kwargs={}),
    "protocol-1-kwargs-list": _protocol_1(task="orcd.generate", id="p", args=[], kwargs=[1]),
    "protocol-1-of-another-application": _protocol_1(task="shop.pay", id="p", args=[], kwargs={}),
}
"""What is changed in a valid message."""


def texts(valid: Envelope) -> dict[str, bytes]:
    """All of them; those with a change are made of ``valid``, each with an id of its own."""
    messages = dict(TEXTS)
    for name, change in CHANGES.items():
        message = copy.deepcopy(valid)
        message["headers"]["id"] = message["properties"]["correlation_id"] = name
        change(message)
        messages[name] = json.dumps(message).encode()
    return messages
