"""Spans of jobs, as an exporter gets them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from orcd.errors import InvalidRequest, Poisoned
from orcd.events import Position, Started, Token
from orcd.request import parse
from orcd.store.token_log import LoggedEvent
from tasks.dispatch.active_job import ActiveJob
from tasks.observe import job_tracer
from tasks.observe.job_tracer import JobTracer, configured_tracer
from tests.tasks.dispatch.byte_model import ENCODER, END_ID, READY
from tests.tasks.dispatch.claims import claim
from worker import contract

CANARY = "Kanarienvogel"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
REQUEST = parse({"messages": [{"role": "user", "content": CANARY}], "model": "bytes", "max_tokens": 8, "seed": 3})
STARTED = LoggedEvent(Position(0, 1), Started("j", "bytes", 1250, 1))
LOGGED = LoggedEvent(Position(1, 0), Token("f", 1, [102]))


class Traced:
    """A tracer, and the spans that it has made."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracer = JobTracer(self._exporter)

    def spans(self) -> dict[str, ReadableSpan]:
        self.tracer.close()
        spans = {span.name: span for span in self._exporter.get_finished_spans()}
        self._exporter.clear()
        return spans


@pytest.fixture
def traced() -> Iterator[Traced]:
    found = Traced()
    yield found
    found.tracer._provider.shutdown()


def job(**fields: Any) -> ActiveJob:
    """A job that was submitted at 1000 and claimed at 1250."""
    found = claim(REQUEST, **{"created_ms": 1000, "started_ms": 1250, "claimed_ms": 1250} | fields)
    prompt = ENCODER.encode(parse({"prompt": CANARY}), READY)
    made = ActiveJob(found, prompt, READY, lambda outcome: None)
    made.add()
    return made


def generate(job: ActiveJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first token comes at 1300, the last at 1800."""
    monkeypatch.setattr(job, "now_ms", lambda: 1300)
    job.process(contract.TokenOutput("j", 0, tuple(b"fr")))
    monkeypatch.setattr(job, "now_ms", lambda: 1800)
    usage = contract.Usage(prefix_hit_tokens=2)
    job.process(contract.TokenOutput("j", 0, (*b"og", END_ID), "stop", usage=usage))


def times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None and span.end_time is not None
    return span.start_time // 1_000_000, span.end_time // 1_000_000


def test_a_job_is_a_span_of_its_senders_trace_with_its_parts_inside(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = job(trace=f"00-{TRACE}-{SPAN}-01")
    generate(found, monkeypatch)
    traced.tracer.job_left(found, found.result)
    spans = traced.spans()
    assert {name: times(span) for name, span in spans.items()} == {
        "chat bytes": (1000, 1800), "queue": (1000, 1250), "prefill": (1250, 1300), "decode": (1300, 1800),
    }  # fmt: skip
    whole = spans.pop("chat bytes")
    assert whole.kind is SpanKind.CONSUMER
    assert whole.parent is not None and whole.context is not None
    assert (f"{whole.context.trace_id:032x}", f"{whole.parent.span_id:016x}") == (TRACE, SPAN)
    assert all(part.parent and part.parent.span_id == whole.context.span_id for part in spans.values())
    assert dict(whole.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.response.id": "j",
        "gen_ai.request.model": "bytes",
        "gen_ai.request.max_tokens": 8,
        "gen_ai.request.seed": 3,
        "gen_ai.response.model": "bytes",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": found.num_tokens_in,
        "gen_ai.usage.output_tokens": 5,
        "orcd.attempt": 1,
        "orcd.prefix_hit_tokens": 2,
        "orcd.preemptions": 0,
    }
    assert CANARY not in repr([span.to_json() for span in (whole, *spans.values())])


def test_a_job_without_a_trace_context_has_a_trace_of_its_own_for_all_its_parts(traced: Traced) -> None:
    first, again = job(), job()
    for each in (first, again):
        traced.tracer.job_left(each, each.result, "lease_lost")
    spans = traced.spans()
    whole = spans["chat bytes"]
    assert whole.parent is None and whole.context is not None
    assert whole.context.trace_id == job_tracer._number("j", 16)


def test_a_part_that_goes_on_has_links_to_those_before(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    before = job()
    traced.tracer.job_left(before, before.result, "given_back")
    first = traced.spans()["chat bytes"]
    assert (first.status.status_code, first.status.description) == (StatusCode.ERROR, "given_back")
    later = job(claimed_ms=1400, log=(STARTED, LOGGED), first_token_ms=1300, attempt=2)
    monkeypatch.setattr(later, "now_ms", lambda: 1900)
    later.process(contract.TokenOutput("j", 0, (*b"rog", END_ID), "stop"))
    traced.tracer.job_left(later, later.result)
    spans = traced.spans()
    assert {name: times(span) for name, span in spans.items()} == {"chat bytes": (1400, 1900), "decode": (1400, 1900)}
    [link] = spans["chat bytes"].links
    assert first.context is not None
    assert (link.context.trace_id, link.context.span_id) == (first.context.trace_id, first.context.span_id)


def test_a_job_that_failed_says_with_which_code(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = job()
    monkeypatch.setattr(failed, "now_ms", lambda: 1500)
    failed.fail(Poisoned(f"given up on {CANARY}"))
    traced.tracer.job_left(failed, failed.result)
    spans = traced.spans()
    assert spans["chat bytes"].status.description == (spans["chat bytes"].attributes or {})["error.type"] == "POISONED"
    assert times(spans["prefill"]) == (1250, 1500)
    assert CANARY not in repr([span.to_json() for span in spans.values()])


def test_it_is_off_unless_it_is_told_where_to_send_to() -> None:
    assert configured_tracer({}) is None
    assert configured_tracer({"OTEL_SERVICE_NAME": "x"}) is None


def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InvalidRequest, match=r"pip install 'orcd\[otel\]'"):
        configured_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})
