"""F08: chains, links, groups, chords and chunks go on when the worker that has begun them leaves."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord, group
from celery.result import AsyncResult

from orcd.client import Client
from orcd.errors import InferenceTimeout
from tests.conftest import wait_until
from tests.tasks.slow_engine import held_engine, slow_engine
from tests.tasks.worker_process import WorkerProcess, wait_until_running

NUM_LONG = 100
SHORT = {"prompt": "old pond", "max_tokens": 8, "temperature": 0.0, "ignore_eos": True}
LONG = {"prompt": "old pond", "max_tokens": NUM_LONG, "seed": 1, "ignore_eos": True}
ENDLESS = LONG | {"max_tokens": 450, "n": 8}


class Canvas:
    """One of each kind, all begun and none ended."""

    def __init__(self, app: Celery, client: Client) -> None:
        long = app.signature("orcd.generate", kwargs=LONG, immutable=True)
        short = app.signature("orcd.generate", kwargs=SHORT, immutable=True)
        chunk = app.signature("orcd.generate_chunk", kwargs={"requests": [SHORT, SHORT]}, immutable=True)
        self.app = app
        self.chain = chain(long, short, chunk, app=app).apply_async()
        self.group = group([long, long, short], app=app).apply_async()
        self.chord = chord([long, short], chunk, app=app).apply_async()
        self.linked = long.apply_async(link=short.clone().set(task_id="link"))
        self.limited = app.signature("orcd.generate", kwargs=ENDLESS, immutable=True).apply_async(
            time_limit=2, link_error=short.clone().set(task_id="link-error")
        )
        self.chunk = app.send_task("orcd.generate_chunk", kwargs={"requests": [LONG, SHORT, LONG]})
        self.job_id = client.submit(**LONG)
        self.other = app.send_task("orcd.generate", kwargs={"job_id": self.job_id})
        begun = [
            self.chain.parent.parent,
            self.group[0],
            self.group[1],
            self.chord.parent[0],
            self.linked,
        ]
        self.begun = [*(result.id for result in begun), f"{self.chunk.id}-0", f"{self.chunk.id}-2", self.job_id]

    def tokens(self, result: Any) -> Any:
        value = result.get(timeout=60)
        return [each["tokens_out"] for each in value] if isinstance(value, list) else value["tokens_out"]

    def check(self) -> None:
        """Every result is there, and is the right one."""
        first, second, third = self.chain.parent.parent, self.chain.parent, self.chain
        assert [self.tokens(result) for result in (first, second, third)] == [NUM_LONG, 8, [8, 8]]
        assert [self.tokens(result) for result in self.group] == [NUM_LONG, NUM_LONG, 8]
        assert self.tokens(self.chord) == [8, 8]
        assert [self.tokens(result) for result in self.chord.parent] == [NUM_LONG, 8]
        assert [self.tokens(result) for result in (self.linked, AsyncResult("link", app=self.app))] == [NUM_LONG, 8]
        with pytest.raises(InferenceTimeout):
            self.limited.get(timeout=60)
        assert self.tokens(AsyncResult("link-error", app=self.app)) == 8
        assert self.tokens(self.chunk) == [NUM_LONG, 8, NUM_LONG]
        parts = [AsyncResult(f"{self.chunk.id}-{index}", app=self.app) for index in range(3)]
        assert [self.tokens(part) for part in parts] == [NUM_LONG, 8, NUM_LONG]
        assert self.tokens(self.other) == self.tokens(AsyncResult(self.job_id, app=self.app)) == NUM_LONG


@pytest.mark.parametrize("leave", [signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL], ids=lambda number: number.name)
def test_every_result_is_right_when_its_worker_leaves_in_the_middle(
    app: Celery,
    client: Client,
    connection: redis.Redis,
    redis_url: str,
    shallow_model: Path,
    tmp_path: Path,
    leave: Any,
) -> None:
    """F08, F10: by SIGQUIT, Celery's cold shutdown, all jobs were cancelled."""
    variables = slow_engine(tmp_path, 0.01) | {"ORCD_DRAIN_TIMEOUT_S": "2"}
    # None of the long jobs ends here.
    with held_engine(tmp_path, 4), WorkerProcess(redis_url, shallow_model, tmp_path, **variables) as first:
        canvas = Canvas(app, client)
        wait_until_running(client, canvas.begun, 2)
        if leave == signal.SIGKILL:
            first.kill()
        else:
            first.process.send_signal(leave)
            first.process.wait(60)
        assert len(first.events("execute_start")) - len(first.events("execute_end")) >= len(canvas.begun)
    with WorkerProcess(redis_url, shallow_model, tmp_path, **variables) as second:
        canvas.check()
        assert second.events("execute_start")
        wait_until(lambda: not connection.keys("orcd:*:messages"))


@pytest.mark.parametrize("case", ["both wait", "the first runs", "the worker dies"])
def test_a_chord_that_is_begun_again_goes_on_though_a_message_of_the_first_one_is_there(
    app: Celery, client: Client, redis_url: str, shallow_model: Path, tmp_path: Path, case: str
) -> None:
    """Its sender was told of an error in the middle, and sent it again: the same tasks in another group."""

    def part(number: int) -> Any:
        return app.signature("orcd.generate", kwargs=LONG, immutable=True, task_id=f"part-{number}")

    body = app.signature("orcd.generate", kwargs=SHORT, immutable=True, task_id="body")
    variables = slow_engine(tmp_path, 0.01) | {"ORCD_DRAIN_TIMEOUT_S": "2"}
    part(0).set(group_id="abandoned", chord=body).apply_async()
    with ExitStack() as workers:
        if case == "both wait":
            result = chord([part(0), part(1)], body).apply_async()
            workers.enter_context(WorkerProcess(redis_url, shallow_model, tmp_path, **variables))
        else:
            worker = workers.enter_context(WorkerProcess(redis_url, shallow_model, tmp_path, **variables))
            with held_engine(tmp_path, 4):
                wait_until_running(client, ["part-0"], 2)
                result = chord([part(0), part(1)], body).apply_async()
                wait_until_running(client, ["part-1"], 2)
                if case == "the worker dies":
                    worker.kill()
                    workers.enter_context(WorkerProcess(redis_url, shallow_model, tmp_path, **variables))
        assert result.get(timeout=60)["tokens_out"] == 8
        assert [each["tokens_out"] for each in result.parent.get(timeout=60)] == [NUM_LONG, NUM_LONG]
