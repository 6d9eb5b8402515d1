"""``orcd bench engine``: throughput and latency of the engine alone, in one process, with no queue.

For each concurrency, that many requests of random prompts are added at once and run to their last token; end tokens
do not stop them, and ids are greedy. Times are wall-clock time: nothing is subtracted or left out but the warm-up,
which is the same number of short requests, twice, as a step of a new size becomes a graph when it comes again (on the
CPU: one request). A token counts from when the engine hands it out. With one output token it is the prefill alone that
is measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kernels.devices.protocol import Device
from orcd.errors import InvalidRequest, OrcdError
from worker.contract import Add, Sampling
from worker.engine.engine import Engine
from worker.load import device_errors, load_engine, open_configured_device
from worker.model.config import ModelConfig
from worker.model.gguf import open_gguf
from worker.model.kv_cache import bytes_per_block
from worker.model.registry import read_model_config
from worker.settings import Settings

WARM_UP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Load:
    """What each of the concurrent requests asks for."""

    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """One concurrency.

    A request's first token counts from the moment when all were added, and ``prompt_tokens_per_s`` is all prompts over
    the time until the last first token; other requests may decode meanwhile.
    """

    model: str
    device: str
    device_name: str
    kv_cache_type: str
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    prompt_tokens_per_s: float
    total_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    inter_token_p50_ms: float
    inter_token_p99_ms: float
    load_ms: int


def measure_all(settings: Settings, load: Load, concurrencies: Sequence[int]) -> Iterator[Measurement]:
    """Load the model of ``settings`` once, on one engine with room for the largest concurrency; a measurement each.

    Raises `orcd.errors.OrcdError` for what cannot be measured.
    """
    start = time.perf_counter()
    device = open_configured_device(settings)
    gguf = open_gguf(settings.model)
    config = read_model_config(gguf)
    if load.prompt_tokens + load.output_tokens > config.context_length:
        raise InvalidRequest(
            f"--prompt-tokens and --output-tokens together exceed the model's context of {config.context_length}"
        )
    settings = _settings_for(settings, config, device, load, max(concurrencies))
    with device_errors(settings):
        engine = load_engine(gguf, device, settings, lambda _done, _total: None)
        load_ms = round((time.perf_counter() - start) * 1000)
        for concurrency in concurrencies:
            generator = np.random.default_rng(concurrency)
            warm_up = Load(load.prompt_tokens, min(load.output_tokens, WARM_UP_TOKENS))
            for num_requests in [1] if device.budget_bytes is None else [concurrency] * 2:
                _run(engine, _requests(generator, config.vocab_size, num_requests, warm_up))
            start, times = _run(engine, _requests(generator, config.vocab_size, concurrency, load))
            yield _measurement(Path(settings.model).name, device, load, load_ms, start, times)


def _measurement(
    model: str, device: Device, load: Load, load_ms: int, start: float, times: list[list[float]]
) -> Measurement:
    """What the ``times`` of each request's tokens say about requests that were added at ``start``."""
    first_s = np.array([each[0] for each in times]) - start
    gaps_ms = np.concatenate([np.diff(each) for each in times]) * 1000 if load.output_tokens > 1 else np.zeros(1)
    total_s = max(each[-1] for each in times) - start
    return Measurement(
        model=model,
        device=device.name,
        device_name=device.description,
        kv_cache_type=device.cache_format.name,
        concurrency=len(times),
        prompt_tokens=load.prompt_tokens,
        output_tokens=load.output_tokens,
        output_tokens_per_s=round(sum(map(len, times)) / total_s, 1),
        prompt_tokens_per_s=round(len(times) * load.prompt_tokens / float(first_s.max()), 1),
        total_s=round(total_s, 3),
        ttft_p50_ms=round(float(np.percentile(first_s, 50)) * 1000, 2),
        ttft_p99_ms=round(float(np.percentile(first_s, 99)) * 1000, 2),
        inter_token_p50_ms=round(float(np.percentile(gaps_ms, 50)), 3),
        inter_token_p99_ms=round(float(np.percentile(gaps_ms, 99)), 3),
        load_ms=load_ms,
    )


def _settings_for(settings: Settings, config: ModelConfig, device: Device, load: Load, concurrency: int) -> Settings:
    """The settings, with room for all requests at once.

    A KV cache size that was set stays as it is, and so does the rule of a CUDA device: what the budget leaves.
    """
    tokens_per_block = settings.kv_block_tokens
    num_blocks = concurrency * (-(-(load.prompt_tokens + load.output_tokens) // tokens_per_block) + 1)
    cache_bytes = settings.kv_cache_bytes
    if device.budget_bytes is None and not cache_bytes:
        cache_bytes = num_blocks * bytes_per_block(config, device.cache_format, tokens_per_block)
    step_tokens = max(settings.step_tokens, concurrency)
    return replace(settings, max_sequences=concurrency, kv_cache_bytes=cache_bytes, step_tokens=step_tokens)


def _requests(generator: np.random.Generator, vocab_size: int, num: int, load: Load) -> list[Add]:
    sampling = Sampling(max_tokens=load.output_tokens, temperature=0.0)
    prompts = generator.integers(0, vocab_size, (num, load.prompt_tokens)).tolist()
    return [Add(f"r{number}", tuple(prompt), sampling) for number, prompt in enumerate(prompts)]


def _run(engine: Engine, requests: list[Add]) -> tuple[float, list[list[float]]]:
    """Run ``requests`` to their ends; when they started, and when each token of each came."""
    times: dict[str, list[float]] = {request.request_id: [] for request in requests}
    start = time.perf_counter()
    for request in requests:
        engine.add(request)
    while engine.has_work:
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            if output.finish_reason == "error":
                raise OrcdError(f"a request failed with {output.error_code}: {output.error_message}")
            times[output.request_id] += [now] * len(output.ids)
    return start, list(times.values())


def format_head(measurement: Measurement) -> str:
    """What is the same for all measurements of a run, and the heads of the columns of `format_row`."""
    return (
        f"{measurement.model} on {measurement.device} ({measurement.device_name}), keys and values of "
        f"{measurement.kv_cache_type}: {measurement.prompt_tokens} tokens in, {measurement.output_tokens} out, "
        f"loaded in {measurement.load_ms} ms\n"
        "streams  output tok/s  prompt tok/s   total s  first token p50/p99 ms  between tokens p50/p99 ms"
    )


def format_row(measurement: Measurement) -> str:
    """A line of the table."""
    return (
        f"{measurement.concurrency:7} {measurement.output_tokens_per_s:13,.1f} {measurement.prompt_tokens_per_s:13,.1f}"
        f" {measurement.total_s:9.2f}  {measurement.ttft_p50_ms:10.1f} /{measurement.ttft_p99_ms:10.1f}"
        f"  {measurement.inter_token_p50_ms:12.2f} /{measurement.inter_token_p99_ms:10.2f}"
    )
