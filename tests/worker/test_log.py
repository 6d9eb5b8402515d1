import io
import json
import os
import re
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

import worker.log
from worker.log import EventLog


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_json_is_one_object_a_line_with_worker_and_context():
    stream = io.StringIO()
    log = EventLog("json", "w1", stream, model="haiku", device="cpu")
    log.event("ready", load_ms=812)
    log.event("error", level="error", code="INTERNAL", message="two\nlines")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "level": "info",
        "event": "ready",
        "worker_id": "w1",
        "model": "haiku",
        "device": "cpu",
        "load_ms": 812,
    }
    assert (second["level"], second["message"]) == ("error", "two\nlines")


def test_text_is_one_line_for_a_person():
    stream = io.StringIO()
    EventLog("text", "w1", stream).event("error", level="warning", code="INTERNAL", message="two\nlines", empty="")
    assert re.fullmatch(
        r'\d\d:\d\d:\d\d warning error code=INTERNAL message="two\\nlines" empty=""\n', stream.getvalue()
    )


@pytest.mark.parametrize(("stream", "is_json"), [(Terminal(), False), (io.StringIO(), True)])
def test_auto_is_text_on_a_terminal_only(stream: io.StringIO, is_json: bool):
    EventLog("auto", "w1", stream).event("startup")
    assert stream.getvalue().startswith("{") == is_json


def test_fields_that_are_none_are_left_out():
    stream = io.StringIO()
    EventLog("json", "w1", stream).event("ready", where=None)
    assert "where" not in stream.getvalue()


def test_a_stream_that_is_gone_does_not_stop_the_work():
    stream = io.StringIO()
    log = EventLog("json", "w1", stream)
    stream.close()
    log.event("ready")


def test_lines_that_may_wait_are_written_with_the_next_one_in_one_write():
    writes = []
    stream = io.StringIO()
    stream.write = writes.append
    log = EventLog("json", "w1", stream)
    log.later("execute_start", job_id="a")
    log.later("execute_start", job_id="b")
    assert writes == []
    log.event("ready")
    log.later("execute_end", job_id="a")
    log.flush()
    log.flush()
    told = [[json.loads(line)["event"] for line in text.splitlines()] for text in writes]
    assert told == [["execute_start", "execute_start", "ready"], ["execute_end"]]


@pytest.mark.parametrize(("extra", "num_writes"), [("", 4), ("\N{SNOWMAN}", 4), ("x" * select.PIPE_BUF, 256)])
def test_no_more_is_written_at_once_than_a_pipe_takes_in_one_piece(extra: str, num_writes: int):
    """Lines of several processes mixed in a pipe whose reader was slow."""
    writes: list[str] = []
    stream = io.StringIO()
    stream.write = writes.append
    log = EventLog("text", "w1", stream)
    for number in range(256):
        log.later("execute_start", number=number, what=extra)
    log.flush()
    assert [int(line.split("number=")[1].split()[0]) for line in "".join(writes).splitlines()] == [*range(256)]
    assert all(text.endswith("\n") for text in writes)
    assert all(len(text.encode()) <= select.PIPE_BUF or text.count("\n") == 1 for text in writes)
    assert len(writes) == num_writes


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """A pipe, from its reader's end to the writer's."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        yield reader, stream
    os.close(reader)


def told(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_reader_that_stands_still_stops_nobody_and_is_told_all_when_it_goes_on(pipe, monkeypatch):
    """The thread that runs all jobs waited for it for ever, with the lease of each renewed."""
    monkeypatch.setattr(worker.log, "PATIENCE_MS", 10)
    reader, stream = pipe
    log = EventLog("json", "w1", stream)
    for number in range(2000):  # more than a pipe holds
        log.event("execute_start", number=number)
    text = os.read(reader, 1 << 20).decode()
    log.event("execute_end")
    while '"execute_end"' not in text:
        text += os.read(reader, 1 << 20).decode()
        log.flush()
    assert [event.get("number") for event in told(text)] == [*range(2000), None]


def test_of_too_many_lines_the_last_are_kept_and_how_many_are_lost_is_told(pipe, monkeypatch):
    monkeypatch.setattr(worker.log, "PATIENCE_MS", 10)
    monkeypatch.setattr(worker.log, "MAX_WAITING", 100)
    reader, stream = pipe
    log = EventLog("json", "w1", stream)
    for number in range(2000):
        log.event("execute_start", number=number)
    events = told(os.read(reader, 1 << 20).decode())
    num_before = len(events)
    log.flush()
    events += told(os.read(reader, 1 << 20).decode())
    assert (events[num_before]["event"], events[num_before]["lines"]) == ("lines_lost", 1900 - num_before)
    assert [event["number"] for event in events[num_before + 1 :]] == [*range(1900, 2000)]


def test_a_line_of_json_is_ascii_whatever_is_in_it():
    stream = io.StringIO()
    log = EventLog("json", "w1", stream)
    fields = {"job_id": "größe", "where": "\ud800", "model": Path("m.gguf"), "cause": ValueError("x"), "level": "info"}
    for name, value in fields.items():
        log.event("ready", **{name: value})
    lines = stream.getvalue().splitlines()
    assert all(line.isascii() for line in lines)
    told = [json.loads(line)[name] for line, name in zip(lines, fields, strict=True)]
    assert told == ["größe", "\ud800", "m.gguf", "x", "info"]
