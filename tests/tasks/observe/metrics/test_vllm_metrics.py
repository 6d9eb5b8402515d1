"""Metrics under vLLM's names."""

from __future__ import annotations

import pytest

from orcd.errors import Cancelled, Poisoned
from tasks.observe.metrics.bucket_counts import BucketCounts
from tasks.observe.metrics.engine_metrics import COUNTERS
from tasks.observe.metrics.token_gaps import SECONDS
from tasks.observe.metrics.vllm_metrics import VllmMetrics
from tests.tasks.dispatch.byte_model import END_ID
from tests.tasks.observe.watched import STATS, canary_job
from worker import contract

GROWTH = {name: float(getattr(STATS, name)) for name in COUNTERS}


def value(metrics: VllmMetrics, name: str, **labels: str) -> float | None:
    return metrics._metrics.registry.get_sample_value(f"vllm:{name}", {"model_name": "demo", "engine": "0", **labels})


def made(*, has_prefix_cache: bool) -> VllmMetrics:
    gaps, sizes = BucketCounts(SECONDS), BucketCounts(contract.STEP_TOKENS)
    gaps.add(0.02, 3)
    sizes.grow([2, 1, *[0] * 12], 9)
    return VllmMetrics("demo", has_prefix_cache=has_prefix_cache, token_gaps=gaps, step_sizes=sizes)


@pytest.fixture
def metrics() -> VllmMetrics:
    return made(has_prefix_cache=True)


def test_the_engines_figures_have_these_names(metrics: VllmMetrics) -> None:
    metrics.engine_changed(STATS, GROWTH)
    assert value(metrics, "num_requests_running") == STATS.running
    assert value(metrics, "num_requests_waiting") == STATS.waiting
    assert value(metrics, "kv_cache_usage_perc") == 5 / 6
    for name, field in {
        "prompt_tokens_total": "prompt_tokens",
        "generation_tokens_total": "output_tokens",
        "num_preemptions_total": "preemptions",
        "prefix_cache_queries_total": "prompt_tokens",
        "prefix_cache_hits_total": "prefix_hit_tokens",
    }.items():
        assert value(metrics, name) == getattr(STATS, field), name
    metrics.engine_exited()
    assert value(metrics, "num_requests_running") == 0
    assert value(metrics, "prompt_tokens_total") == STATS.prompt_tokens


def test_without_a_prefix_cache_nothing_is_looked_up_in_it() -> None:
    metrics = made(has_prefix_cache=False)
    metrics.engine_changed(STATS, GROWTH)
    assert value(metrics, "prefix_cache_queries_total") == 0


def test_what_is_counted_of_tokens_and_steps_is_shown_under_these_names_too(metrics: VllmMetrics) -> None:
    gaps = [value(metrics, "inter_token_latency_seconds_bucket", le=bound) for bound in ("0.01", "0.025", "+Inf")]
    assert gaps == [0, 3, 3]
    assert value(metrics, "inter_token_latency_seconds_sum") == pytest.approx(0.06)
    sizes = [value(metrics, "iteration_tokens_total_bucket", le=bound) for bound in ("1.0", "8.0", "16384.0")]
    assert sizes == [2, 3, 3]
    assert value(metrics, "iteration_tokens_total_sum") == 9


def test_a_jobs_times_add_up(metrics: VllmMetrics) -> None:
    job = canary_job()
    job.add()
    job.process(contract.TokenOutput("j", 0, (*b"frog", END_ID), "stop"))
    metrics.job_ended(job, job.result)
    times = {name: value(metrics, f"{name}_seconds_sum") for name in (
        "time_to_first_token", "e2e_request_latency", "request_queue_time", "request_prefill_time",
        "request_decode_time", "request_inference_time", "request_time_per_output_token",
    )}  # fmt: skip
    decode_s = job.result.decode_ms / 1000
    assert times == pytest.approx({
        "time_to_first_token": 0.3, "e2e_request_latency": 0.3 + decode_s, "request_queue_time": 0.25,
        "request_prefill_time": 0.05, "request_decode_time": decode_s, "request_inference_time": 0.05 + decode_s,
        "request_time_per_output_token": decode_s / 4,
    })  # fmt: skip
    assert value(metrics, "request_generation_tokens_sum") == 5
    assert value(metrics, "request_params_n_sum") == 1
    assert value(metrics, "request_params_max_tokens_count") == 0, "the request has none"
    assert value(metrics, "request_success_total", finished_reason="stop") == 1


def test_an_answer_that_was_cut_off_is_aborted_and_one_that_failed_an_error(metrics: VllmMetrics) -> None:
    for error in (Cancelled("revoked"), Poisoned("given up")):
        job = canary_job()
        job.add()
        job.process(contract.TokenOutput("j", 0, tuple(b"fr")))
        job.fail(error)
        metrics.job_ended(job, job.result)
    assert value(metrics, "request_success_total", finished_reason="abort") == 1
    assert value(metrics, "request_success_total", finished_reason="error") == 1
    assert value(metrics, "e2e_request_latency_seconds_count") == 0
