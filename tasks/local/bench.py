"""``orcd bench queue``: the load of ``orcd bench engine`` through Celery and Redis, as a client sees it.

A Redis and a worker are started for it. For each concurrency that many requests of random token ids (the same ids as
the engine's benchmark takes) are submitted at once and streamed to their last token. Times are wall-clock time in the
client, from before the first submission to the arrival of a token; nothing is subtracted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from orcd.async_client import AsyncClient
from orcd.events import Error, Token
from orcd.result import exception
from tasks.local.local_worker import LocalWorker
from tasks.local.redis_server import RedisServer
from worker.model.gguf import open_gguf
from worker.settings import Settings

WARM_UP_TOKENS = 8

Fields = dict[str, Any]


class Measurement(msgspec.Struct, frozen=True):
    """One concurrency; the fields are those of the engine's benchmark."""

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

    def row(self) -> str:
        """As a line of a table under `HEAD`."""
        return (
            f"{self.concurrency:7} {self.output_tokens_per_s:13,.1f} {self.total_s:9.2f}"
            f"  {self.ttft_p50_ms:10.1f} /{self.ttft_p99_ms:10.1f}"
            f"  {self.inter_token_p50_ms:12.2f} /{self.inter_token_p99_ms:10.2f}"
        )


HEAD = "streams  output tok/s   total s  first token p50/p99 ms  between tokens p50/p99 ms"


class QueueBench:
    """Measures one model on one device behind the queue. Raises `orcd.errors.OrcdError`."""

    def __init__(self, model: Path, device: str, prompt_tokens: int, output_tokens: int) -> None:
        self._model = model
        self._device = device
        self._prompt_tokens = prompt_tokens
        self._output_tokens = output_tokens
        self._vocab_size = open_gguf(model).tensors["token_embd.weight"].shape[0]

    def measure(self, concurrencies: Sequence[int]) -> Iterator[Measurement]:
        """A measurement for each number of streams, on one worker that has room for the largest."""
        most = max(concurrencies)
        defaults = Settings(device=self._device)
        with RedisServer() as server:
            settings = replace(
                defaults,
                model=str(self._model),
                redis_url=server.url,
                max_sequences=most,
                concurrency=0,
                step_tokens=max(most, defaults.step_tokens),
            )
            with LocalWorker(settings, lambda _percent: None) as worker:
                worker.wait_until_ready()
                for concurrency in concurrencies:
                    start, times = asyncio.run(self._run(server.url, concurrency))
                    yield self._measurement(concurrency, start, times)
                worker.stop()

    async def _run(self, redis_url: str, concurrency: int) -> tuple[float, list[list[float]]]:
        """When the requests were submitted, and when each token of each came."""
        generator = np.random.default_rng(concurrency)
        async with AsyncClient(redis_url) as client:
            await self._stream(client, self._requests(generator, 1, WARM_UP_TOKENS))
            return await self._stream(client, self._requests(generator, concurrency, self._output_tokens))

    def _requests(self, generator: np.random.Generator, num: int, output_tokens: int) -> list[Fields]:
        prompts = generator.integers(0, self._vocab_size, (num, self._prompt_tokens)).tolist()
        load = {"max_tokens": output_tokens, "temperature": 0.0, "ignore_eos": True}
        return [{"prompt_token_ids": prompt, **load} for prompt in prompts]

    @staticmethod
    async def _stream(client: AsyncClient, requests: list[Fields]) -> tuple[float, list[list[float]]]:
        async def times(job_id: str) -> list[float]:
            arrivals: list[float] = []
            async for event in client.events(job_id):
                if isinstance(event, Token):
                    arrivals += [time.perf_counter()] * len(event.ids)
                elif isinstance(event, Error):
                    raise exception(event)
            return arrivals

        start = time.perf_counter()
        job_ids = await client.submit_many(requests)
        return start, await asyncio.gather(*map(times, job_ids))

    def _measurement(self, concurrency: int, start: float, times: list[list[float]]) -> Measurement:
        total_s = max(each[-1] for each in times) - start
        first_ms = np.array([each[0] - start for each in times]) * 1000
        gaps_ms = np.concatenate([np.diff(each) for each in times]) * 1000 if self._output_tokens > 1 else np.zeros(1)
        return Measurement(
            model=self._model.name,
            device=self._device,
            concurrency=concurrency,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            output_tokens_per_s=round(sum(map(len, times)) / total_s, 1),
            total_s=round(total_s, 3),
            ttft_p50_ms=round(float(np.percentile(first_ms, 50)), 2),
            ttft_p99_ms=round(float(np.percentile(first_ms, 99)), 2),
            inter_token_p50_ms=round(float(np.percentile(gaps_ms, 50)), 3),
            inter_token_p99_ms=round(float(np.percentile(gaps_ms, 99)), 3),
        )
