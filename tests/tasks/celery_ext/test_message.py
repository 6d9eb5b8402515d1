"""What of a message is checked before Celery gets it, and what is said of one that is wrong."""

from __future__ import annotations

import base64
import bz2
import copy
import json
import lzma
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from kombu import Connection
from kombu.utils.json import loads

from tasks.celery_ext import message as messages
from tasks.celery_ext.message import Message, Unreadable, _parse, read_envelope, read_task
from tasks.celery_ext.tasks import TASKS
from tests.tasks.celery_ext.unreadable import Envelope, envelope, texts

CANARY = "Kanarienvogel"
FIELDS = {"prompt": CANARY, "max_tokens": 2}
VALID = envelope("valid", "orcd.generate", FIELDS)
NAMES = {task.name for task in TASKS}
READABLE = {"delivery-info-list", "body-an-object", "embed-null", "content-encoding-missing", "content-encoding-binary",
            "retries-null"}  # fmt: skip
"""Kinds of which nothing that matters is broken."""
REASONS = {
    "it is not JSON in UTF-8": "empty no-json half-a-message nul no-utf-8 pickle header-with-a-broken-datetime",
    "it is nested too deeply": "deep-list",
    "it is no message: ": "list string number null empty-object properties-missing properties-null properties-list "
    "body-null body-list body-object body-number content-type-list headers-list headers-string",
    "its properties are wrong: ": "body-encoding-number priority-string priority-infinite reply-to-list "
    "correlation-id-list",
    "the encoding of its body is not known": "body-encoding-unknown",
    "its content type is not application/json": "infinite-number lone-surrogate content-type-missing "
    "content-type-null content-type-unknown content-type-pickle",
    "its content encoding is not utf-8": "content-encoding-unknown",
    "its body is not JSON in UTF-8": "body-missing body-no-base64 body-no-json",
    "its body is nested too deeply": "body-deep",
    "its body is wrong: ": "body-a-number body-too-short body-too-long kwargs-null kwargs-list kwargs-string args-null "
    "args-number embed-list callbacks-string callbacks-of-numbers errbacks-without-a-task chain-object chord-list "
    "protocol-1-kwargs-list",
    "it names no task": "headers-missing headers-null task-missing task-null",
    "the name of its task is no text": "task-list",
    "task someone.elses is none of orcd's": "task-unknown",
    "task shop.pay is none of orcd's": "protocol-1-of-another-application",
    "its task is none of orcd's": "task-like-a-prompt",
    "its headers are wrong: eta is no time": "eta-no-time eta-number eta-before-time",
    "its headers are wrong: expires is no time": "expires-no-time expires-list",
    "its headers are wrong: ": "id-missing id-null id-list id-object id-number id-empty id-long timelimit-string "
    "timelimit-short timelimit-nan timelimit-huge retries-string retries-infinite retries-negative stamps-string "
    "stamped-headers-string group-list group-index-huge shadow-list root-id-object parent-id-number "
    "ignore-result-string protocol-1-without-an-id",
    "it holds what is no JSON or no Unicode text": "header-lone-surrogate",
    "its compression is not known": "compression-unknown compression-of-nothing compression-list",
    "its body cannot be decompressed": "compression-cut-off",
    "its body is cut off, or decompressed longer than ": "compression-bomb",
}
"""What the reason begins with -> kinds of messages."""
KINDS = {name: reason for reason, names in REASONS.items() for name in names.split()}
FOREIGN = {"task-unknown", "task-like-a-prompt", "protocol-1-of-another-application"}


def read(text: bytes) -> Message:
    """The message as Celery's worker gets it."""
    message = Message(read_envelope(text, "1 orcd", "orcd"), channel=Connection("memory://").default_channel)
    assert not message.errors
    read_task(message, NAMES)
    return message


def changed(**changes: Any) -> bytes:
    """The valid message with other headers."""
    message: Envelope = copy.deepcopy(VALID)
    message["headers"] |= changes
    return json.dumps(message).encode()


@pytest.mark.parametrize(("name", "text"), texts(VALID).items(), ids=texts(VALID))
def test_what_is_wrong_is_told_in_words_without_what_the_message_says(name: str, text: bytes) -> None:
    if name in READABLE:
        read(text)
        return
    with pytest.raises(Unreadable) as caught:
        read(text)
    why = caught.value
    assert why.reason.startswith(KINDS[name]), why.reason
    assert len(why.reason) < 200
    assert CANARY not in repr(why)
    assert why.is_foreign == (name in FOREIGN)
    assert why.shown_id in (name, "p", "")


def test_there_are_enough_kinds() -> None:
    assert len(texts(VALID)) >= 100
    assert texts(VALID).keys() == KINDS.keys() | READABLE


def test_a_good_message_is_what_its_sender_sent() -> None:
    message = read(json.dumps(VALID).encode())
    assert message.headers == {name: value for name, value in VALID["headers"].items() if value is not None}
    assert message.decode()[:2] == [[], FIELDS]
    assert json.loads(message.body) == message.decode()
    assert message.properties["correlation_id"] == "valid"
    assert message.properties["priority"] == 5


def test_where_a_message_came_from_is_what_we_know_and_not_what_it_says() -> None:
    message = read(json.dumps(VALID).encode())
    assert message.delivery_tag == "1 orcd"
    assert message.delivery_info == {"exchange": "", "routing_key": "orcd"}


def test_headers_that_celery_does_not_know_are_kept() -> None:
    assert read(changed(traceparent="00-ab-cd-01")).headers["traceparent"] == "00-ab-cd-01"


def test_an_id_that_may_not_be_shown_is_left_out_but_its_sender_can_be_answered() -> None:
    for task_id in ("a\nb", "größe", "i" * 200):
        with pytest.raises(Unreadable) as caught:
            read(changed(id=task_id, retries=-1))
        assert (caught.value.shown_id, caught.value.message_id) == ("", task_id)


def test_a_message_of_protocol_1_becomes_one_of_protocol_2() -> None:
    old = {"task": "tasks.generate", "id": "old", "args": [], "kwargs": FIELDS, "retries": 1, "eta": None, "utc": True}
    old |= {"taskset": "group-1", "callbacks": [{"task": "next", "args": [], "kwargs": {}, "options": {}}]}
    text = VALID | {"headers": {}, "body": base64.b64encode(json.dumps(old).encode()).decode()}
    message = read(json.dumps(text).encode())
    assert message.headers == {"task": "tasks.generate", "id": "old", "retries": 1, "group": "group-1"}
    args, kwargs, embed = message.decode()
    assert (args, kwargs, embed["callbacks"]) == ([], FIELDS, old["callbacks"])
    assert json.loads(message.body) == message.decode()


@pytest.mark.parametrize(
    ("name", "compress"),
    [("gzip", zlib.compress), ("bz2", bz2.compress), ("lzma", lzma.compress)],
)
def test_a_compressed_body_is_read(name: str, compress: Callable[[bytes], bytes]) -> None:
    text = copy.deepcopy(VALID)
    text["headers"]["compression"] = f"application/x-{name}"
    text["body"] = base64.b64encode(compress(base64.b64decode(text["body"]))).decode()
    message = read(json.dumps(text).encode())
    assert message.decode()[1] == FIELDS
    assert "compression" not in message.headers


def test_a_message_that_is_too_long_is_not_even_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_MESSAGE_BYTES", 100)
    with pytest.raises(Unreadable, match=r"it has \d+ bytes; at most 100 are read"):
        read(json.dumps(VALID).encode())


def test_a_body_without_base64_is_read_as_it_is() -> None:
    text = copy.deepcopy(VALID)
    text["body"] = base64.b64decode(text["body"]).decode()
    del text["properties"]["body_encoding"]
    assert read(json.dumps(text).encode()).decode()[1] == FIELDS


def test_wrong_fields_of_a_request_are_not_for_this_module() -> None:
    wrong = envelope("wrong", "orcd.generate", {"prompt": 7, "max_tokens": 10**30, "nonsense": [None]})
    assert read(json.dumps(wrong).encode()).decode()[1]["prompt"] == 7


TEXTS = [
    *(
        "1e5",
        "123456789012345678901234567890",
        "-0",
        "-0.0",
        "1E400",
        "NaN",
        "-Infinity",
        "[1,]",
        "[]x",
        "",
        "1" * 5000,
    ),
    *('{"a": 1, "a": 2}', '"\\ud800"', '"\\ud83d\\ude00"', '"\x01"', '"a\\/b\\n"', "\ufeff{}", "[" * 400 + "]" * 400),
    '{"__type__": "uuid", "__value__": {"hex": "00000000000000000000000000000001"}}',
    '{"\\u005f_type__": "bytes", "__value__": "x"}',
    '{"__type__": "nobody", "__value__": 1}',
]


@pytest.mark.parametrize("text", [*map(str.encode, TEXTS), b'"\xff"'], ids=range(len(TEXTS) + 1))
def test_json_is_what_kombu_reads_in_it(text: bytes) -> None:
    try:
        wanted = repr(loads(text))
    except Exception:
        with pytest.raises(Unreadable):
            _parse(text, "it")
    else:
        assert repr(_parse(text, "it")) == wanted


def test_numbers_are_what_kombu_reads() -> None:
    random = Random(5)
    for _ in range(2000):
        number = random.choice(
            [random.random() * 10 ** random.randint(-300, 300), random.getrandbits(random.randint(1, 130))]
        )
        text = json.dumps([number, -number]).encode()
        assert repr(_parse(text, "it")) == repr(loads(text))
