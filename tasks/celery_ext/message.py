"""The one place where bytes from a queue become a message that Celery may be given.

Celery and kombu take what others wrote for what it should be. A field of another type raises somewhere inside of them,
which drops the message, brings it back again and again, or ends the worker. So all that they read is checked here
before they see it; what does not pass is for the dead letters.
"""

from __future__ import annotations

import base64
import bz2
import lzma
import zlib
from collections.abc import Callable, Container
from contextlib import suppress
from typing import Annotated, Any

import msgspec
from celery.utils.time import maybe_iso8601, maybe_make_aware, timezone
from kombu.transport import virtual
from kombu.utils.json import dumps, loads
from msgspec import Meta

from orcd.sampling import prepared
from orcd.store.submission import is_well_formed

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
"""A request has at most 16 MiB; base64 makes four bytes of three. Also the most that a body may be inflated to."""
JSON = "application/json"
MARKS = (b"__type__", b"\\u")
"""Where none of these is in a JSON text, kombu's decoder makes no other values of it than msgspec's, which takes a
tenth of the time. What msgspec refuses, kombu may take: numbers that are none, halves of surrogates."""
INFLATERS: dict[Any, Callable[[], Any]] = {
    "application/x-gzip": zlib.decompressobj,  # what kombu compresses with zlib
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
}
BODY_FIELDS = ("args", "kwargs", "callbacks", "errbacks", "chord", "chain", "utc")
"""What a body of Celery's protocol 1 holds besides what are headers in protocol 2."""

Number = Annotated[int, Meta(ge=0, le=2**31)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
TaskId = Annotated[str, Meta(min_length=1, max_length=255)]


class Unreadable(Exception):
    """What is wrong with a message, in words that hold nothing of what it says but the name of its task.

    ``message_id`` is its id if it has one, which may be any text. The message of another application, which can be
    read, ``is_foreign``.
    """

    def __init__(self, reason: str, message_id: str = "", *, is_foreign: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.message_id = message_id
        self.is_foreign = is_foreign

    @property
    def shown_id(self) -> str:
        """The id, where it can be told to people."""
        return self.message_id if is_well_formed(self.message_id) else ""


@prepared
class _Envelope(msgspec.Struct, rename={"content_type": "content-type", "content_encoding": "content-encoding"}):
    """What kombu puts into a list."""

    properties: dict[str, Any]
    headers: dict[str, Any] | None = None
    body: str = ""
    content_type: str | None = None
    content_encoding: str | None = None


@prepared
class _Properties(msgspec.Struct, omit_defaults=True):
    body_encoding: str | None = None
    correlation_id: str | None = None
    priority: int | None = None
    reply_to: str | None = None


@prepared
class _Headers(msgspec.Struct):
    """What Celery's worker reads of a task's headers, but for its times."""

    id: TaskId
    group: str | None = None
    group_index: Number | None = None
    groups: list[str] | None = None
    ignore_result: bool | None = None
    lang: str | None = None
    meth: str | None = None
    origin: str | None = None
    parent_id: str | None = None
    replaced_task_nesting: Number | None = None
    retries: Number | None = None
    root_id: str | None = None
    shadow: str | None = None
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] | None = None
    timelimit: tuple[Seconds | None, Seconds | None] | None = None


class _Signature(msgspec.Struct):
    """A task that follows."""

    task: str
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    subtask_type: str | None = None


class _Embed(msgspec.Struct):
    """What follows a task's arguments in its body."""

    callbacks: list[_Signature] | None = None
    errbacks: list[_Signature] | None = None
    chain: list[_Signature] | None = None
    chord: _Signature | None = None


_Body = prepared(tuple[list[Any], dict[str, Any], _Embed | None])


class Message(virtual.Message):  # type: ignore[misc]
    """A message of kombu's that has not been decompressed: kombu does it at once, however long the result is."""

    def __init__(self, payload: dict[str, Any], channel: Any = None, **kwargs: Any) -> None:
        headers = dict(payload.get("headers") or {})
        self.compression = headers.pop("compression", None)
        super().__init__({**payload, "headers": headers}, channel, **kwargs)


def read_envelope(text: bytes, delivery_tag: str, queue: str) -> dict[str, Any]:
    """What `Message` takes, of a message as it lies in a queue's list. Raises `Unreadable`.

    Where it came from, and the tag that acknowledges it, are ours: a sender's may be missing or another message's.
    """
    if len(text) > MAX_MESSAGE_BYTES:
        raise Unreadable(f"it has {len(text)} bytes; at most {MAX_MESSAGE_BYTES} are read")
    fields = _parse(text, "it")
    message_id = _id_of(fields.get("headers")) if isinstance(fields, dict) else ""
    envelope = _convert(fields, _Envelope, "it is no message", message_id)
    properties = _convert(envelope.properties, _Properties, "its properties are wrong", message_id)
    body = envelope.body.encode(errors="surrogatepass")
    if properties.body_encoding == "base64":
        try:
            body = base64.b64decode(body)
        except ValueError:
            raise Unreadable("its body is not base64", message_id) from None
    elif properties.body_encoding is not None:
        raise Unreadable("the encoding of its body is not known", message_id)
    kept = {name: value for name, value in msgspec.structs.asdict(properties).items() if value is not None}
    kept.pop("body_encoding", None)
    return {
        "body": body,
        "headers": envelope.headers,
        "content-type": envelope.content_type,
        "content-encoding": envelope.content_encoding,
        "properties": {
            **kept,
            "delivery_tag": delivery_tag,
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }


def read_task(message: Message, tasks: Container[str]) -> None:
    """Check that a message is of one of these tasks, and bring it into the form that is right for Celery's worker.

    That is protocol 2, with all headers of the types that Celery takes for granted. Raises `Unreadable`.
    """
    payload: Any = None
    headers = {name: value for name, value in message.headers.items() if value is not None}
    if "task" not in headers:  # protocol 1 has all in the body
        payload = _payload(message)
        if not isinstance(payload, dict) or payload.get("task") is None:
            raise Unreadable("it names no task", _id_of(headers))
        headers = _old_headers(payload) | headers
    message_id = _id_of(headers)
    _check_is_known(headers["task"], tasks, message_id)
    if payload is None:
        payload = _payload(message)
    if isinstance(payload, dict):
        headers = _old_headers(payload) | headers
        embed = {name: payload.get(name) for name in ("callbacks", "errbacks", "chord")}
        payload = [payload.get("args", []), payload.get("kwargs", {}), embed]
        message.body = dumps(payload).encode()
    _convert(headers, _Headers, "its headers are wrong", message_id)
    for name in ("eta", "expires"):
        _check_time(headers.get(name), name, message_id)
    _convert(payload, _Body, "its body is wrong", message_id)
    try:  # so they can be written down beside the job
        msgspec.json.encode((headers, payload[2]))
    except Exception:
        raise Unreadable("it holds what is no JSON or no Unicode text", message_id) from None
    message.headers = headers
    message._decoded_cache = payload


def _check_is_known(task: Any, tasks: Container[str], message_id: str) -> None:
    if not isinstance(task, str):
        raise Unreadable("the name of its task is no text", message_id)
    if task not in tasks:
        is_name = len(task) <= 200 and all(part.isidentifier() for part in task.split("."))
        reason = f"task {task} is none of orcd's" if is_name else "its task is none of orcd's"
        raise Unreadable(reason, message_id, is_foreign=True)


def _payload(message: Message) -> Any:
    """The decoded body. Raises `Unreadable`."""
    message_id = _id_of(message.headers)
    if message.compression is not None:
        message.body = _inflate(message.body, message.compression, message_id)
        message.compression = None
    if message.content_type != JSON:
        raise Unreadable(f"its content type is not {JSON}", message_id)
    if message.content_encoding not in (None, "utf-8", "us-ascii", "binary"):
        raise Unreadable("its content encoding is not utf-8", message_id)
    return _parse(message.body or b"", "its body", message_id)


def _inflate(body: bytes, compression: Any, message_id: str) -> bytes:
    make = INFLATERS.get(compression) if isinstance(compression, str) else None
    if make is None:
        raise Unreadable("its compression is not known", message_id)
    inflater = make()
    try:
        inflated: bytes = inflater.decompress(body, MAX_MESSAGE_BYTES)
    except (ValueError, OSError, EOFError, zlib.error, lzma.LZMAError):
        raise Unreadable("its body cannot be decompressed", message_id) from None
    if not inflater.eof:
        raise Unreadable(f"its body is cut off, or decompressed longer than {MAX_MESSAGE_BYTES} bytes", message_id)
    return inflated


def _old_headers(body: dict[str, Any]) -> dict[str, Any]:
    """What are headers in protocol 2, of a body of protocol 1."""
    headers = {name: value for name, value in body.items() if name not in BODY_FIELDS and value is not None}
    if "taskset" in headers:
        headers["group"] = headers.pop("taskset")
    return headers


def _parse(text: bytes, what: str, message_id: str = "") -> Any:
    """What kombu reads in it. Raises `Unreadable`."""
    if not any(mark in text for mark in MARKS):
        with suppress(Exception):
            return msgspec.json.decode(text)
    try:
        return loads(text)
    except RecursionError:
        raise Unreadable(f"{what} is nested too deeply", message_id) from None
    except Exception:  # also of what kombu's JSON decoder makes of marked values
        raise Unreadable(f"{what} is not JSON in UTF-8", message_id) from None


def _convert(value: Any, kind: Any, what: str, message_id: str = "") -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:  # it names types and fields, and no value
        raise Unreadable(f"{what}: {error}", message_id) from None


def _check_time(value: Any, name: str, message_id: str) -> None:
    """Whether Celery can count with a time. Raises `Unreadable`."""
    if value is None:
        return
    try:
        timezone.to_system(maybe_make_aware(maybe_iso8601(value))).timestamp()
    except Exception:
        raise Unreadable(f"its headers are wrong: {name} is no time", message_id) from None


def _id_of(headers: Any) -> str:
    found = headers.get("id") if isinstance(headers, dict) else None
    with suppress(UnicodeEncodeError):  # halves of surrogates
        return found if isinstance(found, str) and found.encode() else ""
    return ""
