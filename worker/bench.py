"""``python -m worker bench``: throughput and latency of the engine alone, in one process, with no queue.

For each concurrency, that many requests of random prompts are added at once and run to their last token; end tokens
do not stop them, and ids are greedy. Times are wall-clock time: nothing is subtracted or left out but the warm-up,
which is one short request for each engine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from kernels.device import DeviceUnavailable, open_device
from worker.contract import Add, Sampling
from worker.engine.engine import Engine
from worker.errors import InvalidRequest, ModelLoadFailed, OrcdError
from worker.model.adapters import Model, load_model
from worker.model.gguf import open_gguf
from worker.settings import Settings, from_environment

WARM_UP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Load:
    """What each of the concurrent requests asks for."""

    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """One concurrency. A request's first token counts from the moment when all were added."""

    model: str
    device: str
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    total_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    inter_token_p50_ms: float
    inter_token_p99_ms: float
    load_ms: int


def main(argv: Sequence[str]) -> int:
    """Run the verb; returns the exit code. Raises `worker.errors.OrcdError` for what cannot be measured."""
    parser = argparse.ArgumentParser(prog="orcd bench engine", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("--device", help="cuda:N or cpu")
    parser.add_argument("--prompt-tokens", type=_positive, default=128)
    parser.add_argument("--output-tokens", type=_positive, default=256)
    parser.add_argument("--concurrency", type=_positives, default=[1, 16, 64, 256], metavar="N,...")
    parser.add_argument("--json", action="store_true", help="one object a line")
    arguments = parser.parse_args(argv)
    settings = from_environment(model=arguments.model, device=arguments.device)
    load = Load(arguments.prompt_tokens, arguments.output_tokens)
    for number, measurement in enumerate(measure_all(settings, load, arguments.concurrency)):
        print(
            json.dumps(asdict(measurement)) if arguments.json else _row(measurement, with_head=not number), flush=True
        )
    return 0


def measure_all(settings: Settings, load: Load, concurrencies: Sequence[int]) -> Iterator[Measurement]:
    """Load the model of ``settings`` once and yield a measurement for each concurrency."""
    start = time.perf_counter()
    try:
        device = open_device(settings.device, dequant_cache_bytes=settings.dequant_cache_bytes)
    except DeviceUnavailable as error:
        raise ModelLoadFailed(str(error)) from None
    model = load_model(open_gguf(settings.model), device, lambda _done, _total: None)
    load_ms = round((time.perf_counter() - start) * 1000)
    if load.prompt_tokens + load.output_tokens > model.config.context_length:
        raise InvalidRequest(
            f"--prompt-tokens and --output-tokens together exceed the model's context of {model.config.context_length}"
        )
    for concurrency in concurrencies:
        engine = Engine(model, _settings_for(settings, model, load, concurrency))
        generator = np.random.default_rng(concurrency)
        _run(engine, _requests(generator, model.config.vocab_size, 1, Load(load.prompt_tokens, WARM_UP_TOKENS)))
        start, times = _run(engine, _requests(generator, model.config.vocab_size, concurrency, load))
        first = np.array([each[0] - start for each in times]) * 1000
        gaps = np.concatenate([np.diff(each) for each in times]) * 1000 if load.output_tokens > 1 else np.zeros(1)
        total_s = max(each[-1] for each in times) - start
        yield Measurement(
            model=Path(settings.model).name,
            device=device.name,
            concurrency=concurrency,
            prompt_tokens=load.prompt_tokens,
            output_tokens=load.output_tokens,
            output_tokens_per_s=round(sum(map(len, times)) / total_s, 1),
            total_s=round(total_s, 3),
            ttft_p50_ms=round(float(np.percentile(first, 50)), 2),
            ttft_p99_ms=round(float(np.percentile(first, 99)), 2),
            inter_token_p50_ms=round(float(np.percentile(gaps, 50)), 3),
            inter_token_p99_ms=round(float(np.percentile(gaps, 99)), 3),
            load_ms=load_ms,
        )


def _settings_for(settings: Settings, model: Model, load: Load, concurrency: int) -> Settings:
    """The settings, with room for all requests at once; a KV cache size that was set stays as it is."""
    tokens_per_block = settings.kv_block_tokens
    num_blocks = concurrency * (-(-(load.prompt_tokens + load.output_tokens) // tokens_per_block) + 1)
    cache_bytes = settings.kv_cache_bytes or num_blocks * model.bytes_per_block(tokens_per_block)
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


def _row(measurement: Measurement, *, with_head: bool) -> str:
    head = (
        f"{measurement.model} on {measurement.device}: {measurement.prompt_tokens} tokens in, "
        f"{measurement.output_tokens} out, loaded in {measurement.load_ms} ms\n"
        "streams  output tok/s   total s  first token p50/p99 ms  between tokens p50/p99 ms\n"
    )
    return (head if with_head else "") + (
        f"{measurement.concurrency:7} {measurement.output_tokens_per_s:13,.1f} {measurement.total_s:9.2f}"
        f"  {measurement.ttft_p50_ms:10.1f} /{measurement.ttft_p99_ms:10.1f}"
        f"  {measurement.inter_token_p50_ms:12.2f} /{measurement.inter_token_p99_ms:10.2f}"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _positives(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]
