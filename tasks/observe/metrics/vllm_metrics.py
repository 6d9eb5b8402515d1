"""Metrics under the names that vLLM gave them, where they mean the same: dashboards and autoscalers know these.

A request's arrival is the submission of its job, and its queue time ends with the job's first claim: jobs wait in Redis
rather than in the engine. What follows up to the first token counts as its prefill.
"""

from __future__ import annotations

from collections.abc import Mapping

from orcd.request import Request
from orcd.result import Result
from tasks.observe.metrics.bucket_counts import BucketCounts
from tasks.observe.metrics.engine_metrics import kv_use
from tasks.observe.metrics.finish_reason import REASONS, finish_reason
from tasks.observe.metrics.labelled_metrics import LabelledMetrics
from tasks.observe.observed_job import ObservedJob
from worker import contract

FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160,
                 640, 2560)  # fmt: skip
REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
TOKENS = tuple(step * 10**power for power in range(6) for step in (1, 2, 5))
CHOICES = (1, 2, 5, 10, 20)


class VllmMetrics:
    """The part of vLLM's metrics that a worker can fill, with its labels ``model_name`` and ``engine``."""

    def __init__(
        self, model: str, *, has_prefix_cache: bool, token_gaps: BucketCounts, step_sizes: BucketCounts
    ) -> None:
        """``token_gaps`` and ``step_sizes`` are counted elsewhere, under our own names."""
        self._has_prefix_cache = has_prefix_cache
        self._metrics = metrics = LabelledMetrics({"model_name": model, "engine": "0"})
        self._running = metrics.gauge("vllm:num_requests_running", "Answers that are being generated")
        self._waiting = metrics.gauge("vllm:num_requests_waiting", "Answers that wait in the engine")
        self._kv_use = metrics.gauge("vllm:kv_cache_usage_perc", "Share of the KV cache in use; 1 is all of it")
        self._prompt_tokens = metrics.counter("vllm:prompt_tokens", "Tokens of prompts")
        self._output_tokens = metrics.counter("vllm:generation_tokens", "Generated tokens")
        self._preemptions = metrics.counter("vllm:num_preemptions", "Answers that had to give their KV blocks back")
        self._queries = metrics.counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache")
        self._hits = metrics.counter("vllm:prefix_cache_hits", "Of these, tokens that were in it")
        self._ended = metrics.counter_by("finished_reason", "vllm:request_success", "Answers by their end", REASONS)
        names = {
            "first_token": ("vllm:time_to_first_token_seconds", "Submission to first token", FIRST_TOKEN_S),
            "token": ("vllm:request_time_per_output_token_seconds", "Mean time of a token after the first",
                      token_gaps.bounds),
            "whole": ("vllm:e2e_request_latency_seconds", "Submission to end", REQUEST_S),
            "queue": ("vllm:request_queue_time_seconds", "Submission to first claim", REQUEST_S),
            "inference": ("vllm:request_inference_time_seconds", "First claim to end", REQUEST_S),
            "prefill": ("vllm:request_prefill_time_seconds", "First claim to first token", REQUEST_S),
            "decode": ("vllm:request_decode_time_seconds", "First token to end", REQUEST_S),
            "prompt": ("vllm:request_prompt_tokens", "Tokens of a prompt", TOKENS),
            "generation": ("vllm:request_generation_tokens", "Tokens of a job's answers", TOKENS),
            "n": ("vllm:request_params_n", "n of a request", CHOICES),
            "max_tokens": ("vllm:request_params_max_tokens", "max_tokens of a request that has it", TOKENS),
        }  # fmt: skip
        self._histograms = {key: metrics.histogram(*each) for key, each in names.items()}
        metrics.buckets("vllm:inter_token_latency_seconds", "From a token to the next one of its answer", token_gaps)
        metrics.buckets("vllm:iteration_tokens_total", "Tokens that a step computes", step_sizes)

    def page(self) -> bytes:
        """All of them in Prometheus's text format."""
        return self._metrics.page()

    def engine_changed(self, stats: contract.Stats, growth: Mapping[str, float]) -> None:
        """New figures of the engine, and how much its counters have grown."""
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        self._kv_use.set(kv_use(stats))
        self._prompt_tokens.inc(growth["prompt_tokens"])
        self._output_tokens.inc(growth["output_tokens"])
        self._preemptions.inc(growth["preemptions"])
        if self._has_prefix_cache:
            self._queries.inc(growth["prompt_tokens"])
            self._hits.inc(growth["prefix_hit_tokens"])

    def engine_exited(self) -> None:
        """There is no engine."""
        for gauge in (self._running, self._waiting, self._kv_use):
            gauge.set(0)

    def job_ended(self, job: ObservedJob, result: Result) -> None:
        """A job reached its terminal event here."""
        for choice in result.choices:
            self._ended(finish_reason(result, choice)).inc()
        if result.error is not None:
            return
        prefill_s, decode_s = result.ttft_ms / 1000, result.decode_ms / 1000
        queue_s = result.queue_ms / 1000
        found = {
            "first_token": queue_s + prefill_s,
            "whole": queue_s + prefill_s + decode_s,
            "queue": queue_s,
            "inference": prefill_s + decode_s,
            "prefill": prefill_s,
            "decode": decode_s,
            "prompt": result.tokens_in,
            "generation": result.tokens_out,
        }
        longest = max((len(choice.token_ids) for choice in result.choices), default=0)
        if longest > 1:
            found["token"] = decode_s / (longest - 1)
        if isinstance(job.claim.request, Request):
            found["n"] = job.claim.request.n
            if job.claim.request.max_tokens is not None:
                found["max_tokens"] = job.claim.request.max_tokens
        for key, value in found.items():
            self._histograms[key].add(value)
