"""An observer, with what it has logged and counted."""

from __future__ import annotations

import io
import json
from importlib.metadata import version
from typing import Any

from orcd.errors import OrcdError
from orcd.request import parse
from tasks.dispatch.active_job import ActiveJob
from tasks.dispatch.prompt_encoder import Prompt
from tasks.observe.observer import Observer
from tests.tasks.dispatch.byte_model import ENCODER, READY
from tests.tasks.dispatch.claims import claim
from worker import contract
from worker.log import EventLog
from worker.settings import Settings

STATS = contract.Stats(
    running=3,
    waiting=4,
    kv_blocks_used=5,
    kv_blocks_total=6,
    steps=7,
    prompt_tokens=8,
    output_tokens=9,
    prefix_hit_tokens=10,
    preemptions=11,
    memory_bytes=12,
    step_tokens=contract.StepSizes((1, 0, 2, *[0] * 10, 4), 68_000),
    state_slots_used=13,
    state_slots_total=14,
)
LABELS = {"model": "demo", "device": "cpu", "version": version("orcd")}
"""What all metrics of this worker carry, but those with vLLM's names."""
CANARY = "Kanarienvogel"


class Watched:
    """An observer with what it has logged."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self.observer = Observer(
            EventLog("json", "worker-1", self._stream), "worker-1", Settings(name="demo", device="cpu")
        )

    @property
    def text(self) -> str:
        self.observer.log.flush()
        return self._stream.getvalue()

    def events(self) -> list[dict[str, Any]]:
        """What was logged since the last call, without time and worker."""
        events = [json.loads(line) for line in self.text.splitlines()]
        self._stream.seek(0)
        self._stream.truncate()
        for event in events:
            del event["time"]
            assert event.pop("worker_id") == "worker-1"
        return events

    def sample(self, name: str, **labels: str) -> float | None:
        """The value of a metric of this worker."""
        return self.observer.metrics.registry.get_sample_value(name, LABELS | labels)


def canary_job(prompt: Prompt | OrcdError | None = None) -> ActiveJob:
    """A claimed job with the canary in its prompt; with an error instead of a prompt it has ended."""
    request = parse({"prompt": CANARY})
    found = claim(request, 2, started_ms=1250, first_token_ms=1300, claimed_ms=1250)
    return ActiveJob(found, prompt or ENCODER.encode(request, READY), READY, lambda outcome: None)
