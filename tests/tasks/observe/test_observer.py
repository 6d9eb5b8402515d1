"""What changes a worker's state is logged, counted, and seen in its health."""

from __future__ import annotations

import time

import msgspec
import pytest

from orcd.errors import Poisoned
from tasks.observe.observer import SILENT_S
from tests.tasks.dispatch.byte_model import END_ID, READY
from tests.tasks.observe.watched import CANARY, STATS, Watched, canary_job
from worker import contract


def test_a_job_is_told_with_its_figures_and_no_text(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    job = canary_job()
    watched.observer.job_started(job)
    job.add()
    monkeypatch.setattr(job, "now_ms", lambda: 1800)  # half a second after the first token
    usage = contract.Usage(prefix_hit_tokens=8, preemptions=1)
    job.process(contract.TokenOutput("j", 0, (*b"frog", END_ID), "stop", usage=usage))
    watched.observer.job_ended(job, job.result)
    assert CANARY not in watched.text
    assert "frog" not in watched.text
    start, end = watched.events()
    assert start == {
        "level": "info",
        "event": "execute_start",
        "job_id": "j",
        "attempt": 2,
        "tokens_in": len(CANARY),
        "queue_ms": 250,
    }
    assert end == {
        "level": "info",
        "event": "execute_end",
        "job_id": "j",
        "state": "succeeded",
        "tokens_in": len(CANARY),
        "tokens_out": 5,
        "queue_ms": 250,
        "ttft_ms": 50,
        "decode_ms": 500,
        "tokens_per_s": 8.0,
        "prefix_hit_tokens": 8,
        "preemptions": 1,
        "attempt": 2,
        "text_sha256": job.text_sha256,
    }
    assert len(job.text_sha256) == 64
    assert watched.sample("orcd_jobs_total", state="succeeded") == 1
    assert watched.sample("orcd_tokens_total", direction="in") == len(CANARY)
    assert watched.sample("orcd_tokens_total", direction="out") == 5
    assert watched.sample("orcd_queue_seconds_sum") == 0.25
    assert watched.sample("orcd_first_token_seconds_sum") == 0.05
    assert watched.sample("orcd_decode_seconds_count") == 1


def test_a_failed_job_is_counted_by_its_state_and_told_with_its_code(watched: Watched) -> None:
    job = canary_job(Poisoned(f"given up on {CANARY}"))
    watched.observer.job_ended(job, job.result)
    assert CANARY not in watched.text
    (end,) = watched.events()
    assert end == {
        "level": "warning",
        "event": "execute_end",
        "job_id": "j",
        "state": "failed",
        "code": "POISONED",
        "attempt": 2,
        "tokens_in": 0,
        "tokens_out": 0,
    }
    assert watched.sample("orcd_jobs_total", state="failed") == 1
    assert watched.sample("orcd_queue_seconds_count") == 0


def test_an_engine_that_is_lost_is_an_error_and_takes_the_readiness_with_it(watched: Watched) -> None:
    observer = watched.observer
    observer.ready(READY)
    watched.events()
    observer.log.engine_hung(121.234)
    observer.engine_exited(-9)
    assert not observer.is_ready
    hung, exited = watched.events()
    assert (hung["level"], hung["code"], hung["silent_s"]) == ("error", "ENGINE_LOST", 121.2)
    assert (exited["level"], exited["code"], exited["exit_code"]) == ("error", "ENGINE_LOST", -9)
    assert watched.sample("orcd_engine_exits_total") == 1
    observer.ready(READY)
    assert observer.is_ready


def test_the_heartbeat_says_what_the_engine_does(watched: Watched) -> None:
    observer = watched.observer
    idle = {"model": "demo", "state": "loading", "ready": 0, "jobs": 0, "running": 0, "waiting": 0, "output_tokens": 0,
            "tokens_per_s": 0.0, "kv_use": 0.0, "load_percent": 0}  # fmt: skip
    assert observer.heartbeat(0) == idle
    observer.ready(READY)
    observer.stats(STATS)
    busy = {"model": "demo", "state": "ready", "ready": 1, "jobs": 7, "running": 3, "waiting": 4, "output_tokens": 9,
            "tokens_per_s": 0.0, "kv_use": 0.833, "load_percent": 0}  # fmt: skip
    assert observer.heartbeat(7) == busy
    assert watched.sample("orcd_jobs_in_hand") == 7
    observer.stats(msgspec.structs.replace(STATS, healthy=False))
    assert observer.heartbeat(7)["ready"] == 0


def test_a_workers_state_is_one_word(watched: Watched) -> None:
    observer, states = watched.observer, []
    for change in (
        lambda: None,
        lambda: observer.ready(READY),
        lambda: observer.stats(msgspec.structs.replace(STATS, healthy=False)),
        lambda: observer.stats(STATS),
        lambda: observer.engine_exited(-9),
        lambda: setattr(observer, "is_draining", True),
    ):
        change()
        states.append(observer.state)
        assert observer.is_ready == (observer.state == "ready"), "a worker that leaves is not ready for more"
    assert states == ["loading", "ready", "unhealthy", "ready", "loading", "draining"]


def test_the_tokens_per_second_are_those_between_two_figures_of_the_engine(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    rates = []
    for at, output_tokens in ((100.0, 50), (101.0, 150), (103.0, 150), (104.0, 151)):
        now[0] = at
        watched.observer.stats(msgspec.structs.replace(STATS, output_tokens=output_tokens))
        rates.append(watched.observer.heartbeat(0)["tokens_per_s"])
    watched.observer.engine_exited(-9)
    watched.observer.stats(STATS)
    assert [*rates, watched.observer.heartbeat(0)["tokens_per_s"]] == [0, 100, 0, 1, 0]


def test_an_engine_that_is_unhealthy_is_told_once_and_takes_the_readiness_with_it(watched: Watched) -> None:
    observer, unhealthy = watched.observer, msgspec.structs.replace(STATS, healthy=False)
    observer.stats(unhealthy)  # the check at the load comes before Ready
    observer.ready(READY)
    assert not observer.is_ready
    observer.stats(unhealthy)
    assert [event["event"] for event in watched.events() if event["level"] == "error"] == ["unhealthy"]
    assert watched.sample("orcd_engine_healthy") == 0
    observer.stats(STATS)
    assert observer.is_ready
    assert watched.sample("orcd_engine_healthy") == 1
    observer.stats(unhealthy)
    observer.engine_exited(1)
    assert watched.sample("orcd_engine_healthy") == 0
    observer.ready(READY)  # of a new process, of which nothing bad is known
    assert observer.is_ready
    assert watched.sample("orcd_engine_healthy") == 1


def test_fewer_sequences_can_run_while_blocks_are_lacking_and_none_without_an_engine(watched: Watched) -> None:
    observer = watched.observer
    assert observer.num_runnable == 0
    observer.ready(READY)
    assert observer.num_runnable == READY.max_sequences
    observer.stats(msgspec.structs.replace(STATS, running=3, waiting=5))
    assert observer.num_runnable == READY.max_sequences
    observer.stats(msgspec.structs.replace(STATS, running=3, waiting=5, lacks_blocks=True))
    assert observer.num_runnable == 3
    observer.engine_exited(1)
    assert observer.num_runnable == 0


def test_a_worker_says_why_it_would_run_no_job(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    observer, problems = watched.observer, []

    def time_passes() -> None:
        now[0] += SILENT_S

    for change in (
        lambda: observer.loads(contract.Load(45, 45, 100)),
        lambda: observer.loads(contract.Load(100, 100, 100)),
        lambda: observer.ready(READY),
        observer.redis_failed,
        lambda: [observer.redis_answered(), observer.loop_turned()],
        time_passes,
        observer.redis_answered,
        observer.loop_turned,
        lambda: observer.stats(msgspec.structs.replace(STATS, running=4, waiting=9)),
        lambda: observer.stats(msgspec.structs.replace(STATS, healthy=False)),
        observer.drains,
        lambda: observer.thread_died("claimer", None),
    ):
        change()
        problems.append(observer.problem)
        assert observer.health(with_metrics=False).is_ready == (not problems[-1])
        assert watched.sample("orcd_ready") == float(not problems[-1])
    away, unhealthy = "Redis is away or refuses commands", "the engine is not healthy; the worker's log says why"
    assert problems == [
        "the model is being loaded, 45 %", "the engine is being started", "", away, "", away,
        "Celery's event loop stands still", "", "", unhealthy, unhealthy, "a thread of the worker has died",
    ]  # fmt: skip


def test_the_load_is_a_share_of_the_answers_that_an_engine_generates_at_a_time(watched: Watched) -> None:
    observer = watched.observer
    assert msgspec.structs.asdict(observer.health(with_metrics=False).load) == {
        "jobs": 0, "running": 0, "waiting": 0, "max_sequences": 0, "load": 0.0, "kv_use": 0.0, "tokens_per_s": 0.0,
        "load_percent": None,
    }  # fmt: skip
    observer.ready(READY)
    observer.stats(STATS)
    observer.heartbeat(7)
    load = observer.health(with_metrics=False).load
    assert (load.jobs, load.running, load.waiting, load.max_sequences, load.load) == (7, 3, 4, 4, 1.75)
    assert load.kv_use == 0.833
