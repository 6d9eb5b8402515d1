"""``orcd demo``: Redis, a worker process with the model that ships, prompts in, answers out, everything stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, BinaryIO

import msgspec

from tasks.app import safe_url
from tasks.batch_run import record
from tasks.client import Client
from tasks.redis_server import RedisServer
from tasks.result import ResultBuilder, exception
from tasks.token_log import Token
from worker.errors import BY_CODE, EngineLost, InvalidRequest, OrcdError
from worker.settings import PREFIX, Settings, to_environment

HERE = Path(__file__).parent
MODEL = HERE / "haiku-q4_k_m.gguf"
PROMPTS = HERE / "prompts.jsonl"
DEVICE = "cpu"
LOAD_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 60.0
RECONNECT_S = 5.0
PROGRESS_STEP = 25


class Demo:
    """One run of the whole system; the results go to ``output``, one JSON object a line."""

    def __init__(self, output: Path, redis_url: str | None = None) -> None:
        self._output = output
        self._redis_url = redis_url

    def run(self) -> None:
        """Raises `OrcdError` with one line on what went wrong. Nothing that was started outlives this."""
        with ExitStack() as stack:
            stack.enter_context(_interrupted_by_signals())
            results = stack.enter_context(_open(self._output))
            redis_url = self._redis_url or stack.enter_context(RedisServer()).url
            say(f"Redis at {safe_url(Settings(redis_url=redis_url))}")
            worker = stack.enter_context(DemoWorker(redis_url))
            worker.wait_until_ready()
            client = stack.enter_context(Client(redis_url, reconnect_s=RECONNECT_S))
            self._ask(client, worker.name, results)
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
        results.write(msgspec.json.encode({"job_id": job_id, "prompt": prompt, **record(result)}) + b"\n")
        results.flush()
        return result.tokens_out


class DemoWorker:
    """``orcd worker`` as a process. Its log is read for the load progress and for what went wrong."""

    def __init__(self, redis_url: str) -> None:
        self.name = f"demo-{os.getpid()}"  # so that no other worker on the same Redis takes the jobs
        self._redis_url = redis_url
        self._loaded = threading.Event()
        self._error: OrcdError | None = None

    def __enter__(self) -> DemoWorker:
        settings = Settings(str(MODEL), device=DEVICE, name=self.name, redis_url=self._redis_url, log_format="json")
        inherited = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
        say(f"starting a worker with {MODEL.name} on {DEVICE}")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tasks.cli", "worker"],
            env=inherited | to_environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for this process, which then stops the worker in order
        )
        self._reader = threading.Thread(target=self._read_log, name="worker log", daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._terminate()
        self._reader.join()

    def wait_until_ready(self) -> None:
        """Raises the error that the worker ended with, or `EngineLost`."""
        if not self._loaded.wait(LOAD_TIMEOUT_S):
            raise EngineLost(f"the worker was not ready after {LOAD_TIMEOUT_S:.0f} s")
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End the worker in order. Raises `EngineLost` unless it exits with code 0."""
        if code := self._terminate():
            raise EngineLost(f"the worker exited with code {code}")

    def _terminate(self) -> int:
        self._process.terminate()
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the engine process ends with its parent
            return self._process.wait()

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        shown = -PROGRESS_STEP
        for line in self._process.stderr:
            try:
                event = msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.MsgspecError, UnicodeDecodeError):
                if line.startswith(b"orcd: "):
                    self._fail(*line.decode().rstrip().split(": ", 2)[1:])
                continue  # not ours: a warning of a library
            match event.get("event"):
                case "model_load_progress" if event["percent"] >= shown + PROGRESS_STEP:
                    shown = event["percent"] // PROGRESS_STEP * PROGRESS_STEP
                    say(f"loading the model: {shown:3} %")
                case "ready":
                    self._loaded.set()
                case "error" if event["level"] == "error":
                    self._fail(event["code"], event.get("message", "the engine process ended"))
        if not self._loaded.is_set() and self._error is None:
            self._fail(EngineLost.code, "the worker ended before the model was loaded")
        self._loaded.set()

    def _fail(self, code: str, message: str) -> None:
        self._error = BY_CODE.get(code, OrcdError)(message)


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a closed terminal, end the demo as Ctrl-C does: in order."""

    def interrupt(signal_number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _open(output: Path) -> BinaryIO:
    try:
        return output.open("wb")
    except OSError as error:
        raise InvalidRequest(f"{output}: cannot be written ({error.strerror})") from None


def say(text: str) -> None:
    """A line about what happens, on standard error: standard output is for the answers."""
    print(text, file=sys.stderr, flush=True)
