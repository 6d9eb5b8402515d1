"""What clients read of jobs in one round trip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orcd.status import FIELDS, Look, Status
from orcd.store import schema
from orcd.store.commands.script_pipeline import ScriptPipeline
from orcd.store.event_stream import PAGE_ENTRIES
from orcd.store.submission import check_job_id
from orcd.store.token_log import usable


def pipeline_of_page(look: Any, job_id: str, start: str, prefix: str) -> ScriptPipeline:
    """The look script, and then the page of the job's log from ``start``."""
    pipeline = ScriptPipeline()
    pipeline.call(look, [job_id])
    pipeline.add("XRANGE", schema.log_key(job_id, prefix), start, "+", "COUNT", PAGE_ENTRIES)
    return pipeline


def pipeline_of_statuses(look: Any, job_ids: Sequence[str], prefix: str) -> ScriptPipeline:
    """What `read_statuses` reads. Raises `InvalidRequest` for a malformed id."""
    pipeline = ScriptPipeline()
    for job_id in job_ids:
        pipeline.call(look, [check_job_id(job_id)])
        pipeline.add("HMGET", schema.job_key(job_id, prefix), *FIELDS)
        pipeline.add("XREVRANGE", schema.log_key(job_id, prefix), "+", "-", "COUNT", 1)
    pipeline.add("TIME")
    return pipeline


def read_statuses(job_ids: Sequence[str], answers: Sequence[Any]) -> list[Status]:
    """From what the look script, the record and the end of the log answered for each job, and the clock at last.

    Errors may be among it.
    """
    *told, clock = answers
    now_ms = 1000 * clock[0] + clock[1] // 1000 if isinstance(clock, tuple) else 0
    return [
        Status.read(job_id, Look.read(job_id, look), usable(values), usable(last_entries), now_ms)
        for job_id, look, values, last_entries in zip(job_ids, told[::3], told[1::3], told[2::3], strict=True)
    ]
