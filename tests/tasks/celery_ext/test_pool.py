"""The Celery side as applications see it, and what the pool relies on in Celery."""

from __future__ import annotations

import gc
import re
import signal
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery import Celery, chain, chord, group
from celery.result import AsyncResult

from orcd.client import Client
from orcd.errors import Cancelled, Conflict, InvalidRequest
from orcd.settings import ClientSettings
from orcd.store.enqueue import Message, Publisher
from tasks.app import create_app
from tests.conftest import emptied, wait_until
from tests.tasks.slow_engine import slow_engine
from tests.tasks.worker_process import WorkerProcess, wait_until_running
from worker.settings import Settings

SHORT = {"prompt": "old pond", "max_tokens": 8, "temperature": 0.0, "ignore_eos": True}
NUM_LONG = 40
LONG = {"prompt": "old pond", "max_tokens": 450, "ignore_eos": True}


@pytest.fixture(scope="module")
def worker(shared_redis: Any, shallow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """One worker for all tests here: they use ids of their own and leave Redis alone."""
    folder = tmp_path_factory.mktemp("pool")
    with WorkerProcess(emptied(shared_redis), shallow_model, folder, **slow_engine(folder)) as process:
        yield process


@pytest.fixture
def app(worker: WorkerProcess) -> Iterator[Celery]:
    """A foreign producer's app: it knows the broker and nothing else."""
    app = create_app(Settings(redis_url=worker.redis_url))
    yield app
    gc.collect()  # an AsyncResult unsubscribes when it is collected, so it must go before its Redis does
    app.close()


@pytest.fixture
def client(worker: WorkerProcess) -> Iterator[Client]:
    with Client(worker.redis_url) as client:
        yield client


@pytest.fixture
def publisher(worker: WorkerProcess) -> Iterator[Publisher]:
    publisher = Publisher(ClientSettings(redis_url=worker.redis_url))
    yield publisher
    publisher.close()


def _get(result: AsyncResult) -> Any:
    return result.get(timeout=60)


def test_a_foreign_producer_sends_the_request_in_the_message(app: Celery, client: Client) -> None:
    result = app.send_task("orcd.generate", kwargs=SHORT)
    value = _get(result)
    assert value["state"] == "succeeded"
    assert len(value["choices"][0]["token_ids"]) == 8
    assert client.result(result.id, timeout=60).text == value["choices"][0]["text"]


def test_the_result_of_a_submitted_job_is_a_celery_result_too(app: Celery, client: Client) -> None:
    job_id = client.submit(**SHORT)
    assert _get(AsyncResult(job_id, app=app))["choices"][0]["text"] == client.result(job_id, timeout=60).text


def test_a_bad_inline_request_fails_with_its_code_and_field(app: Celery) -> None:
    with pytest.raises(InvalidRequest, match="temperature"):
        _get(app.send_task("orcd.generate", kwargs=SHORT | {"temperature": 9}))
    with pytest.raises(InvalidRequest, match="keyword"):
        _get(app.send_task("orcd.generate", args=["old pond"]))
    with pytest.raises(InvalidRequest, match="unknown"):
        _get(app.send_task("orcd.generate", kwargs={"job_id": "never-submitted"}))


def test_chains_groups_and_chords_work(app: Celery) -> None:
    generate = app.signature("orcd.generate", kwargs=SHORT, immutable=True)
    chunk = app.signature("orcd.generate_chunk", kwargs={"requests": [SHORT]}, immutable=True)
    assert _get(chain(generate, generate, app=app).apply_async())["state"] == "succeeded"
    assert [value["tokens_out"] for value in _get(group([generate] * 3, app=app).apply_async())] == [8, 8, 8]
    assert _get(chord([generate] * 3, chunk, app=app).apply_async())[0]["state"] == "succeeded"


def test_a_chunk_runs_many_jobs_in_one_message_and_keeps_their_errors_apart(app: Celery, client: Client) -> None:
    requests = [SHORT, SHORT | {"prompt_token_ids": [10**6], "prompt": None}, SHORT]
    requests[1].pop("prompt")
    values = _get(app.send_task("orcd.generate_chunk", kwargs={"requests": requests}))
    assert [value["state"] for value in values] == ["succeeded", "failed", "succeeded"]
    assert values[1]["error"]["code"] == "INVALID_REQUEST"
    job_ids = client.submit_many([SHORT, SHORT])
    values = _get(app.send_task("orcd.generate_chunk", kwargs={"job_ids": job_ids}))
    assert [value["job_id"] for value in values] == job_ids


def test_messages_with_one_idempotency_key_are_answered_by_one_job(app: Celery, client: Client) -> None:
    request = LONG | {"max_tokens": NUM_LONG, "idempotency_key": "pond"}
    first, second = (app.send_task("orcd.generate", kwargs=request) for _ in range(2))
    job_id = client.submit(**request)
    wait_until_running(client, [job_id], 3)
    with pytest.raises(Conflict, match="choose another id or idempotency_key"):
        _get(app.send_task("orcd.generate", kwargs=request | {"prompt": "frog"}))
    value = _get(first)
    assert value == _get(second) == _get(AsyncResult(job_id, app=app))
    assert (value["job_id"], value["tokens_out"], client.status(job_id).attempt) == (job_id, NUM_LONG, 1)


def test_a_task_id_that_is_used_again_for_another_request_is_refused_and_the_log_says_so(
    app: Celery, client: Client, worker: WorkerProcess
) -> None:
    """While the first one ran its result was the answer to both."""
    first = app.send_task("orcd.generate", kwargs=LONG | {"max_tokens": NUM_LONG}, task_id="used-again")
    wait_until_running(client, ["used-again"], 3)
    with pytest.raises(Conflict, match="belongs to another request"):
        _get(app.send_task("orcd.generate", kwargs=SHORT, task_id="used-again"))
    assert client.result("used-again", timeout=60).tokens_out == NUM_LONG
    del first
    wait_until(lambda: AsyncResult("used-again", app=app).successful())
    (refused,) = [event for event in worker.events("refused") if event["job_id"] == "used-again"]
    assert refused["code"] == "CONFLICT"


def test_a_message_of_its_own_id_waits_for_a_job_that_another_message_runs(app: Celery, client: Client) -> None:
    job_id = client.submit(**(LONG | {"max_tokens": NUM_LONG}))
    wait_until_running(client, [job_id], 3)
    assert _get(app.send_task("orcd.generate", kwargs={"job_id": job_id}))["tokens_out"] == NUM_LONG
    assert client.status(job_id).attempt == 1


@pytest.mark.parametrize("kwargs", [{}, {"job_ids": []}, {"job_ids": "abc"}, {"requests": [3]}, {"job_ids": ["a b"]}])
def test_a_malformed_chunk_is_refused_by_name(app: Celery, kwargs: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        _get(app.send_task("orcd.generate_chunk", kwargs=kwargs))


def test_revoking_a_running_task_ends_its_job(app: Celery, client: Client) -> None:
    job_id = client.submit(**LONG)
    wait_until_running(client, [job_id], 3)
    app.control.revoke(job_id, terminate=True)
    assert client.result(job_id, timeout=60).state == "cancelled"


def test_cancelling_mid_stream_ends_the_stream_and_the_task(app: Celery, client: Client) -> None:
    job_id = client.submit(**LONG)
    wait_until_running(client, [job_id], 3)
    client.cancel(job_id)
    result = client.result(job_id, timeout=60)
    assert result.state == "cancelled"
    assert 3 <= result.tokens_out < 450
    with pytest.raises(Cancelled):
        _get(AsyncResult(job_id, app=app))


def test_a_deadline_ends_a_running_job(client: Client) -> None:
    result = client.result(client.submit(**LONG, deadline_s=0.3), timeout=60)
    assert result.state == "expired"
    assert result.error is not None
    assert result.error.code == "EXPIRED"


def test_a_message_delivered_again_changes_nothing(
    app: Celery, client: Client, publisher: Publisher, worker: WorkerProcess
) -> None:
    """While the job runs the worker adopts the second delivery; after its end it is acknowledged as a no-op."""
    job_id = client.submit(**(LONG | {"max_tokens": NUM_LONG}))
    wait_until_running(client, [job_id], 3)
    publisher.publish(Message(job_id, "orcd", 5))
    result = client.result(job_id, timeout=60)
    assert _get(AsyncResult(job_id, app=app))["tokens_out"] == NUM_LONG
    publisher.publish(Message(job_id, "orcd", 5))
    assert _get(app.send_task("orcd.generate", kwargs=SHORT))["state"] == "succeeded"
    assert client.result(job_id, timeout=60) == result
    assert client.status(job_id).attempt == 1
    assert len([event for event in worker.events("execute_start") if event["job_id"] == job_id]) == 1


def test_the_result_is_stored_even_if_the_worker_died_between_the_last_event_and_the_result(
    app: Celery, client: Client, publisher: Publisher
) -> None:
    job_id = client.submit(**SHORT)
    text = client.result(job_id, timeout=60).text
    _get(AsyncResult(job_id, app=app))
    AsyncResult(job_id, app=app).forget()  # as if it had never been written
    publisher.publish(Message(job_id, "orcd", 5))
    assert _get(AsyncResult(job_id, app=app))["choices"][0]["text"] == text


def test_the_prompt_may_not_fill_the_whole_context(client: Client) -> None:
    result = client.result(client.submit(prompt_token_ids=[5] * 3000), timeout=60)
    assert result.error is not None
    assert result.error.code == "CONTEXT_LENGTH_EXCEEDED"
    assert "3000" in result.error.message


def test_inspect_shows_the_engine_and_no_arguments(app: Celery, client: Client, worker: WorkerProcess) -> None:
    task_id = app.send_task("orcd.generate", kwargs=LONG).id
    wait_until_running(client, [task_id], 3)
    inspect = app.control.inspect(timeout=60, limit=1)
    (stats,) = inspect.stats().values()
    assert stats["pool"]["engine"]["pid"] == worker.engine_pid
    (active,) = inspect.active().values()
    (task,) = [task for task in active if task["id"] == task_id]
    assert task["args"] == []
    assert task["kwargs"] == {}
    client.cancel(task_id)


def test_a_task_of_another_kind_runs_as_in_any_pool(app: Celery) -> None:
    backend_cleanup = app.send_task("celery.backend_cleanup", queue="orcd")
    assert _get(backend_cleanup) is None


def test_a_worker_that_shows_where_its_threads_are_shows_no_prompt(
    redis_url: str, shallow_model: Path, tmp_path: Path
) -> None:
    with (
        WorkerProcess(redis_url, shallow_model, tmp_path, **slow_engine(tmp_path)) as worker,
        create_app(Settings(redis_url=redis_url)) as app,
        Client(redis_url) as client,
    ):
        task_id = app.send_task("orcd.generate", kwargs=LONG | {"prompt": "Kanarienvogel"}, queue="orcd").id
        wait_until_running(client, [task_id])
        worker.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: "most recent call" in worker.log_path.read_text())
        client.cancel(task_id)
    assert "LOCAL VARIABLES" not in worker.log_path.read_text()
    assert "Kanarienvogel" not in worker.log_path.read_text()


NO_MODEL, CUT_MODEL, NO_DATABASE, PORT_TAKEN = "no model", "cut model", "no database", "port taken"
has_gpu = find_spec("cupy") is not None and Path("/dev/nvidia0").exists()


@pytest.mark.parametrize(
    ("mistake", "code", "advice"),
    [
        pytest.param({}, "MODEL_LOAD_FAILED", r"--model or ORCD_MODEL", id="no model is named"),
        pytest.param({"ORCD_MODEL": NO_MODEL}, "MODEL_LOAD_FAILED", r"gone\.gguf: cannot be opened", id="no such file"),
        pytest.param({"ORCD_MODEL": CUT_MODEL}, "MODEL_LOAD_FAILED", r"cut\.gguf: is truncated", id="truncated file"),
        pytest.param(
            {"ORCD_DEVICE": "cuda:0"},
            "MODEL_LOAD_FAILED",
            r"--device cpu",
            id="no GPU",
            marks=pytest.mark.skipif(has_gpu, reason="there is a GPU"),
        ),
        pytest.param({"ORCD_REDIS_URL": NO_DATABASE}, "REDIS_UNAVAILABLE", "no database 999", id="no such database"),
        pytest.param({"ORCD_METRICS_PORT": PORT_TAKEN}, "INVALID_REQUEST", r"ORCD_METRICS_PORT", id="port taken"),
    ],
)
def test_a_worker_that_cannot_start_says_why_in_one_line_and_exits_with_one(
    shared_redis: Any, shallow_model: Path, tmp_path: Path, mistake: dict[str, str], code: str, advice: str
) -> None:
    model = tmp_path / "haiku.gguf"
    model.symlink_to(shallow_model)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(shallow_model.read_bytes()[:-1000])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        paths = {NO_MODEL: tmp_path / "gone.gguf", CUT_MODEL: cut, PORT_TAKEN: taken.getsockname()[1]}
        paths |= {NO_DATABASE: shared_redis.url.replace("://", "://:secret@").replace("/0", "/999")}
        variables = {name: str(paths.get(value, value)) for name, value in mistake.items()}
        named = {} if not mistake else {"ORCD_MODEL": str(model)}
        variables = {"ORCD_MODEL": ""} | named | variables
        worker = WorkerProcess(shared_redis.url, Path(), tmp_path, by_celery=True, **variables)
        assert worker.process.wait(60) == 1
    (error,) = worker.events("error")
    assert error["code"] == code
    assert re.search(advice, error["message"])
    assert [event["event"] for event in worker.events()][-1] == "shutdown"
    assert worker.events("celery") == []
    assert "secret" not in worker.log_path.read_text()
    assert "Traceback" not in worker.log_path.read_text()
    engines = [
        process.pid
        for process in psutil.process_iter(["environ"])
        if str(tmp_path) in (process.info["environ"] or {}).get("ORCD_MODEL", "")
    ]
    assert engines == []
