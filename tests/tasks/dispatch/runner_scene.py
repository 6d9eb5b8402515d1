"""A job runner on a real Redis, with the test in the place of its claimer, its engine and its publisher."""

from __future__ import annotations

import io
import json
import math
import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any
from unittest.mock import patch

from redis.client import PubSub

from orcd.request import parse
from orcd.store import schema
from orcd.store.claim import Claim
from orcd.store.enqueue import Message
from orcd.store.job_store import JobStore
from tasks.dispatch.active_job import ActiveJob, Termination
from tasks.dispatch.delivery import Answer
from tasks.dispatch.job_runner import JobRunner, Release
from tasks.dispatch.prompt_encoder import Prompt
from tasks.observe.observer import Observer
from tests.tasks.dispatch.small_tokenizer import SPELLINGS, TOKENIZER
from worker import contract
from worker.log import EventLog
from worker.settings import Settings
from worker.text.detokenizer import Detokenizer

REQUEST = parse({"prompt": "x", "max_tokens": 9})
READY = contract.Ready("m", "qwen2", "cpu", 9, 64, 64, 8, 1, 1, 1, "f-float32-cpu-1")


class RunnerScene:
    """A job runner and what came out of it."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.published: list[Message] = []
        self.outcomes: list[tuple[str, Answer]] = []
        self._listeners: list[PubSub] = []  # a channel that is forgotten is closed
        self.lost = threading.Event()
        self.log = io.StringIO()
        observer = Observer(EventLog("json", "w", self.log), "w", Settings(name="m", device="cpu"))
        self.deaths: SimpleQueue[tuple[str, BaseException | None]] = SimpleQueue()
        self.runner = JobRunner(
            Settings(device="cpu"),
            store,
            observer,
            self.published.append,
            self.lost.set,
            lambda *death: self.deaths.put(death),
        )

    def listen(self, job_id: str) -> None:
        """Subscribe to the events of a job."""
        channel = self.store.redis.pubsub()
        channel.subscribe(schema.events_channel(job_id))
        assert channel.get_message(timeout=60)["type"] == "subscribe"
        self._listeners.append(channel)

    def hold_quiet(self) -> None:
        """Hold what nobody listens to back for as long as the test takes, however busy the machine is."""
        self.runner._batcher._quiet_end = math.inf

    def begin(self, job_id: str) -> ActiveJob:
        """Claim a job and hand it to the job runner."""
        claim = self.store.claim([job_id])[0]
        assert isinstance(claim, Claim), claim
        prompt = Prompt([1, 2], contract.Sampling(max_tokens=9), lambda: Detokenizer(TOKENIZER), SPELLINGS)
        job = ActiveJob(claim, prompt, READY, lambda outcome: self.outcomes.append((job_id, outcome)))
        self.runner.put(job)
        return job

    def say(self, job: ActiveJob, *ids: int, choice: int = 0, finish: contract.FinishReason | None = None) -> None:
        """What the engine draws for the job."""
        output = contract.TokenOutput(job.request_id, choice, ids, finish)
        self.runner.put(contract.Outputs((output,)))

    def throttle_until(self, is_over: Callable[[], object]) -> None:
        """A throttle interval that ends when what was written in it fulfils the condition, however long that takes."""
        write, over = self.runner._write, Termination("nobody", None)

        def write_on(jobs: Iterable[ActiveJob]) -> None:
            write(jobs)
            if is_over():
                self.runner.put(over)

        with patch.object(self.runner, "_write", write_on):
            self.runner._throttle(30)
        assert self.runner._pending is over
        self.runner._pending = None

    def release(self) -> None:
        """Have all jobs given back, as at the end of a worker."""
        self.runner.put(Release(threading.Event()))
        self.runner.run_batch()

    def log_events(self) -> list[dict[str, Any]]:
        """What was logged so far."""
        return [json.loads(line) for line in self.log.getvalue().splitlines()]
