"""``orcd demo``: Redis, a worker process with the model that ships, prompts in, answers out, everything stopped."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from orcd import jsonl
from orcd.batch.results.orcd_results import record
from orcd.cli.command_line import interrupted_by_signals
from orcd.client import Client
from orcd.errors import EngineLost, InvalidRequest
from orcd.events import Token
from orcd.result import ResultBuilder, exception
from orcd.store.redis_address import RedisAddress
from tasks.local.local_worker import LocalWorker
from tasks.local.redis_server import RedisServer
from worker.settings import Settings

HERE = Path(__file__).parent
MODEL = HERE / "haiku-q4_k_m.gguf"
PROMPTS = HERE / "prompts.jsonl"
DEVICE = "cpu"
ANSWER_TIMEOUT_S = 60.0
RECONNECT_S = 5.0


class Demo:
    """One run of the whole system; the results go to ``output``, one JSON object a line."""

    def __init__(self, output: Path, redis_url: str | None = None) -> None:
        self._output = output
        self._redis_url = redis_url

    def run(self) -> None:
        """Raises `OrcdError` with one line on what went wrong. Nothing that was started outlives this."""
        with ExitStack() as stack:
            stack.enter_context(interrupted_by_signals())
            results = stack.enter_context(_open(self._output))
            redis_url = self._redis_url or stack.enter_context(RedisServer()).url
            say(f"Redis at {RedisAddress.parse(redis_url)}")
            say(f"starting a worker with {MODEL.name} on {DEVICE}")
            # A name of its own, so that no other worker on the same Redis takes the jobs.
            settings = Settings(model=str(MODEL), device=DEVICE, name=f"demo-{os.getpid()}", redis_url=redis_url)
            worker = stack.enter_context(LocalWorker(settings, _show_load))
            worker.wait_until_ready()
            client = stack.enter_context(Client(redis_url, reconnect_s=RECONNECT_S))
            self._ask(client, settings.name, results)
            worker.stop()
        say("worker and engine stopped; done")

    def _ask(self, client: Client, model: str, results: BinaryIO) -> None:
        """Submit all prompts at once, then show the answers in order, each as it grows."""
        requests = [msgspec.json.decode(line) | {"model": model} for line in PROMPTS.read_bytes().splitlines()]
        start = time.monotonic()
        job_ids = client.submit_many(requests)
        say(f"submitted {len(job_ids)} prompts from {PROMPTS.name}; they run together, shown one after the other\n")
        num_tokens = 0
        for request, job_id in zip(requests, job_ids, strict=True):
            num_tokens += self._show(client, request, job_id, results)
        seconds = time.monotonic() - start
        say(f"{len(job_ids)} jobs, {num_tokens} tokens in {seconds:.1f} s: {num_tokens / seconds:.0f} tokens/s")
        say(f"results in {self._output}")

    @staticmethod
    def _show(client: Client, request: dict[str, Any], job_id: str, results: BinaryIO) -> int:
        """One job's answer on standard output and in the result file; returns its number of tokens."""
        prompt = request["messages"][-1]["content"]
        print(f"> {prompt}")
        builder = ResultBuilder(job_id)
        try:
            for event in client.events(job_id, timeout=ANSWER_TIMEOUT_S):
                builder.add(event)
                if isinstance(event, Token):
                    print(event.t, end="", flush=True)
        except TimeoutError:
            raise EngineLost(f"the worker did not finish an answer within {ANSWER_TIMEOUT_S:.0f} s") from None
        print("\n", flush=True)
        result = builder.result()
        if result.error is not None:
            raise exception(result.error)
        results.write(jsonl.encode({"job_id": job_id, "prompt": prompt, **record(result)}))
        results.flush()
        return result.tokens_out


def _show_load(percent: int) -> None:
    say(f"loading the model: {percent:3} %")


def _open(output: Path) -> BinaryIO:
    try:
        return output.open("wb")
    except OSError as error:
        raise InvalidRequest(f"{output}: cannot be written ({error.strerror})") from None


def say(text: str) -> None:
    """A line about what happens, on standard error: standard output is for the answers."""
    print(text, file=sys.stderr, flush=True)
