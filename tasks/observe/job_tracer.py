"""Spans of jobs for OpenTelemetry, made when a job leaves a worker: its time in the queue, prefill and decode."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from orcd.errors import InvalidRequest
from orcd.events import Started
from orcd.request import Request
from orcd.result import Result
from tasks.observe.observed_job import ObservedJob

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
FLUSH_MS = 1000
NS_PER_MS = 1_000_000


def configured_tracer(environment: Mapping[str, str] = os.environ) -> JobTracer | None:
    """A tracer that sends to where OpenTelemetry's own variables say, None if they do not.

    Raises `InvalidRequest` if the packages of the extra ``otel`` are missing then.
    """
    if not any(environment.get(name) for name in ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError:
        raise InvalidRequest(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed; run: pip install 'orcd[otel]'"
        ) from None
    return JobTracer(OTLPSpanExporter())


class JobTracer:
    """Makes spans of jobs that have left this worker and hands them to ``exporter``, on a thread of OpenTelemetry's.

    Each worker that had a job makes a span of its part, in the sender's trace if the job has a trace context, else in
    one that the job's id gives. A part that goes on where others stopped has links to theirs. Ids of spans are made of
    the job's id and the start of the part, so that a worker knows those of the ones before. Of a worker that was killed
    there is no span.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        class Ids(RandomIdGenerator):  # type: ignore[misc]
            """Gives the ids that are wanted of a job's span, and others at random."""

            wanted: tuple[int, int] | None = None

            def generate_trace_id(self) -> int:
                return self.wanted[0] if self.wanted else super().generate_trace_id()

            def generate_span_id(self) -> int:
                return self.wanted[1] if self.wanted else super().generate_span_id()

        self._ids = Ids()
        resource = Resource.create({"service.name": "orcd", "service.version": version("orcd")})
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("orcd", version("orcd"))

    def job_left(self, job: ObservedJob, result: Result, error_type: str = "") -> None:
        """A job has ended here; or it goes on elsewhere, and ``error_type`` says why."""
        from opentelemetry import trace

        claim, end_ms = job.claim, job.now_ms()
        starts = [logged.event.started_at for logged in claim.log if isinstance(logged.event, Started)]
        begin_ms = claim.claimed_ms if starts else claim.created_ms
        context = _parent(claim.trace)
        parent = trace.get_current_span(context).get_span_context() if context is not None else None
        trace_id = parent.trace_id if parent is not None else _number(claim.job_id, 16)
        sampled = trace.TraceFlags(trace.TraceFlags.SAMPLED)
        links = [
            trace.Link(trace.SpanContext(trace_id, _span_id(claim.job_id, at), is_remote=True, trace_flags=sampled))
            for at in starts
        ]
        error_type = error_type or (result.error.code if result.error else "")
        attributes = _attributes(job, result) | ({"error.type": error_type} if error_type else {})
        with self._with_ids(trace_id, _span_id(claim.job_id, claim.claimed_ms)):
            span = self._tracer.start_span(
                f"{attributes['gen_ai.operation.name']} {result.model or ''}".strip(),
                context or trace.set_span_in_context(trace.INVALID_SPAN),
                trace.SpanKind.CONSUMER,
                attributes,
                links,
                begin_ms * NS_PER_MS,
            )
        if error_type:
            span.set_status(trace.Status(trace.StatusCode.ERROR, error_type))
        inside = trace.set_span_in_context(span)
        for name, (start_ms, stop_ms) in _parts(job, has_begun=bool(starts), end_ms=end_ms).items():
            part = self._tracer.start_span(name, inside, start_time=start_ms * NS_PER_MS)
            part.end(stop_ms * NS_PER_MS)
        span.end(end_ms * NS_PER_MS)

    def close(self) -> None:
        """Send what is left, as far as that takes no longer than a second."""
        self._provider.force_flush(FLUSH_MS)

    @contextmanager
    def _with_ids(self, trace_id: int, span_id: int) -> Iterator[None]:
        self._ids.wanted = trace_id, span_id
        try:
            yield
        finally:
            self._ids.wanted = None


def _parent(traceparent: str) -> Any:
    """The context of the sender's span, None if it gave none."""
    if not traceparent:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}) or None


def _parts(job: ObservedJob, *, has_begun: bool, end_ms: int) -> dict[str, tuple[int, int]]:
    """Start and end of what a worker's part consists of, by the Redis clock in milliseconds."""
    claim, first_ms = job.claim, job.first_token_ms
    parts = {} if has_begun else {"queue": (claim.created_ms, claim.claimed_ms)}
    if first_ms is None:
        return parts | {"prefill": (claim.claimed_ms, end_ms)}
    if first_ms >= claim.claimed_ms:
        parts["prefill"] = claim.claimed_ms, first_ms
    return parts | {"decode": (max(first_ms, claim.claimed_ms), end_ms)}


def _attributes(job: ObservedJob, result: Result) -> dict[str, Any]:
    """What OpenTelemetry's conventions for generative models name, and a little of our own. No text."""
    request = job.claim.request
    found: dict[str, Any] = {"gen_ai.operation.name": "text_completion", "gen_ai.response.id": job.job_id}
    if isinstance(request, Request):
        found |= {
            "gen_ai.operation.name": "chat" if request.messages is not None else "text_completion",
            "gen_ai.request.model": request.model,
            "gen_ai.request.max_tokens": request.max_tokens,
            "gen_ai.request.seed": request.seed,
            "gen_ai.request.choice.count": request.n if request.n > 1 else None,
        }
    reasons = [choice.finish_reason for choice in result.choices if choice.finish_reason]
    found |= {
        "gen_ai.response.model": result.model,
        "gen_ai.response.finish_reasons": reasons or None,
        "gen_ai.usage.input_tokens": job.num_tokens_in,
        "gen_ai.usage.output_tokens": job.num_tokens_out,
        "orcd.attempt": job.claim.attempt,
        "orcd.prefix_hit_tokens": job.usage.prefix_hit_tokens,
        "orcd.preemptions": job.usage.preemptions,
    }
    return {name: value for name, value in found.items() if value is not None}


def _span_id(job_id: str, claimed_ms: int) -> int:
    return _number(f"{job_id} {claimed_ms}", 8)


def _number(text: str, num_bytes: int) -> int:
    """An id that is never 0, which would be none."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:num_bytes], "big") or 1
