from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import openai
import pytest
import redis

from orcd.batch.results.result_file import ResultFile
from orcd.gateway.batches import batch_runner, batch_store, batches
from orcd.gateway.batches.batch_task import BatchTask, Stopped
from orcd.gateway.settings import GatewaySettings
from orcd.store import schema
from tests.conftest import wait_until
from tests.orcd.answering_worker import AnsweringWorker
from tests.orcd.gateway.batches.batch_calls import URL, begin, ended, line, lines_of
from tests.orcd.gateway.conftest import OpenSdk, StartGateway, running
from tests.orcd.job_writer import MakeStore, claimed


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_runner, "LOOK_S", 0.1)
    monkeypatch.setattr(batch_store, "LEASE_MS", 1500)


def test_a_batch_runs_to_its_end(
    start_gateway: StartGateway, tmp_path: Path, worker: AnsweringWorker, open_sdk: OpenSdk
) -> None:
    sdk = open_sdk(start_gateway(files_dir=str(tmp_path)))
    batch = ended(sdk, begin(sdk, line("a"), line("b", nonsense=1), line("c"), "{"))
    assert batch.status == "completed"
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (4, 2, 2)
    assert (batch.usage.output_tokens, batch.usage.input_tokens_details.cached_tokens) == (6, 4)
    assert batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    results = {each["custom_id"]: each for each in lines_of(sdk, batch.output_file_id)}
    assert sorted(results) == ["a", "c"]
    assert results["a"]["response"]["body"]["choices"][0]["message"]["content"] == " 1 2 3"
    assert [each["custom_id"] for each in lines_of(sdk, batch.error_file_id)] == ["b", None]
    for file_id in (batch.input_file_id, batch.output_file_id, batch.error_file_id):
        sdk.files.delete(file_id)
    assert list(tmp_path.iterdir()) == []
    assert [each.id for each in sdk.batches.list()] == [batch.id]
    assert sdk.batches.cancel(batch.id).status == "completed"


def test_the_files_that_a_batch_writes_expire_if_it_says_so(
    start_gateway: StartGateway,
    tmp_path: Path,
    connection: redis.Redis,
    make_store: MakeStore,
    served_model: str,
    open_sdk: OpenSdk,
) -> None:
    """From its end on: its files may have to be kept for an hour, and it may take a day."""
    sdk = open_sdk(start_gateway(files_dir=str(tmp_path)))
    file = sdk.files.create(file=("in.jsonl", line("a").encode()), purpose="batch")
    expires_after: Any = {"anchor": "created_at", "seconds": 3600.0}  # JSON has one kind of numbers
    begun = sdk.batches.create(
        input_file_id=file.id, endpoint=URL, completion_window="24h", output_expires_after=expires_after
    )
    wait_until(lambda: sdk.batches.retrieve(begun.id).status == "in_progress")
    output_file_id = sdk.batches.retrieve(begun.id).output_file_id
    assert output_file_id is not None
    assert sdk.files.retrieve(output_file_id).expires_at is None
    worker = AnsweringWorker(connection, make_store)
    batch = ended(sdk, begun.id)
    worker.stop()
    assert batch.output_expires_after == expires_after
    written = sdk.files.retrieve(output_file_id)
    assert written.created_at >= batch.finalizing_at
    assert written.expires_at == written.created_at + 3600
    assert sdk.files.retrieve(file.id).expires_at is None
    assert {path.name for path in tmp_path.glob("*.expires")} == {f"{written.id}.expires"}, "there is no error file"


def test_a_batch_goes_on_at_another_gateway_and_no_line_runs_twice(
    redis_url: str, tmp_path: Path, connection: redis.Redis, make_store: MakeStore, open_sdk: OpenSdk
) -> None:
    settings = GatewaySettings(redis_url=redis_url, files_dir=str(tmp_path))
    with running(settings) as first:
        batch_id = begin(open_sdk(first), *(line(str(number)) for number in range(20)))
        wait_until(lambda: connection.zcard(schema.QUEUED) == 20)
    jobs = set(connection.zrange(schema.QUEUED, 0, -1))
    with running(settings) as second:
        sdk = open_sdk(second)
        wait_until(lambda: sdk.batches.retrieve(batch_id).request_counts.total == 20)
        assert set(connection.zrange(schema.QUEUED, 0, -1)) == jobs
        worker = AnsweringWorker(connection, make_store)
        batch = ended(sdk, batch_id)
        worker.stop()
        assert batch.request_counts.completed == 20
        assert batch.error_file_id is None
        assert {file.id for file in sdk.files.list()} == {batch.input_file_id, batch.output_file_id}
        assert sorted(int(each["custom_id"]) for each in lines_of(sdk, batch.output_file_id)) == list(range(20))
    assert len(connection.keys("orcd:{*}:job")) == 20


def test_a_line_that_failed_before_its_gateway_died_is_not_run_again(
    redis_url: str, tmp_path: Path, connection: redis.Redis, make_store: MakeStore, open_sdk: OpenSdk
) -> None:
    settings = GatewaySettings(redis_url=redis_url, files_dir=str(tmp_path))
    with running(settings) as first:
        sdk = open_sdk(first)
        batch_id = begin(sdk, line("a"), line("b"))
        wait_until(lambda: connection.zcard(schema.QUEUED) == 2)
        writers = [claimed(make_store(), job_id.decode()) for job_id in connection.zrange(schema.QUEUED, 0, -1)]
        writers[0].fail("POISONED", "given up")
        wait_until(lambda: sdk.batches.retrieve(batch_id).request_counts.failed == 1)
    with running(settings) as second:
        sdk = open_sdk(second)
        writers[1].start()
        writers[1].tokens(1)
        writers[1].end()
        batch = ended(sdk, batch_id)
        assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)
        (failed,) = lines_of(sdk, batch.error_file_id)
        assert failed["response"]["body"]["error"]["code"] == "poisoned"
    assert len(connection.keys("orcd:{*}:job")) == 2


def test_a_batch_whose_files_a_stalled_gateway_still_writes_waits_for_them(
    redis_url: str,
    tmp_path: Path,
    connection: redis.Redis,
    make_store: MakeStore,
    open_sdk: OpenSdk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given_back: list[BatchTask] = []
    run = BatchTask.run

    def note_if_given_back(task: BatchTask) -> None:
        try:
            run(task)
        except Stopped:
            given_back.append(task)
            raise

    settings = GatewaySettings(redis_url=redis_url, files_dir=str(tmp_path))
    with running(settings) as first:
        sdk = open_sdk(first)
        batch_id = begin(sdk, line("a"))
        wait_until(lambda: sdk.batches.retrieve(batch_id).output_file_id)
        output = tmp_path / f"{sdk.batches.retrieve(batch_id).output_file_id}.data"
        wait_until(lambda: connection.zcard(schema.QUEUED) == 1)
    stalled = ResultFile(output)
    monkeypatch.setattr(BatchTask, "run", note_if_given_back)
    with running(settings) as second:
        sdk = open_sdk(second)
        wait_until(lambda: len(given_back) > 1)
        assert sdk.batches.retrieve(batch_id).status == "in_progress"
        stalled.close()
        worker = AnsweringWorker(connection, make_store)
        assert ended(sdk, batch_id).status == "completed"
        worker.stop()


def test_a_batch_that_is_cancelled_cancels_its_jobs_and_keeps_its_results(
    start_gateway: StartGateway, tmp_path: Path, connection: redis.Redis, open_sdk: OpenSdk
) -> None:
    sdk = open_sdk(start_gateway(files_dir=str(tmp_path)))
    batch_id = begin(sdk, line("a"), line("b"))
    wait_until(lambda: connection.zcard(schema.QUEUED) == 2)
    assert sdk.batches.cancel(batch_id).status == "cancelling"
    batch = ended(sdk, batch_id)
    assert batch.status == "cancelled"
    assert batch.cancelling_at <= batch.cancelled_at
    assert connection.zcard(schema.QUEUED) == 0
    assert connection.zcard(schema.BATCHES) == 0


def test_what_is_kept_of_batches_runs_out(
    start_gateway: StartGateway, tmp_path: Path, connection: redis.Redis, worker: AnsweringWorker, open_sdk: OpenSdk
) -> None:
    sdk = open_sdk(start_gateway(files_dir=str(tmp_path), job_ttl_s=100))
    worker.max_jobs = 0  # until it was looked at what is kept of a batch that runs
    batch_id = begin(sdk, line("a"))
    kept = [key for key in connection.keys("orcd:batch*") if key != schema.batch_key(batch_id).encode()]
    assert len(kept) == 2
    assert all(batches.WINDOW_S < connection.ttl(key) <= batches.WINDOW_S + 100 for key in kept)
    worker.max_jobs = math.inf
    ended(sdk, batch_id)
    wait_until(lambda: 0 < connection.ttl(schema.batch_key(batch_id)) <= 100)
    connection.delete(schema.batch_key(batch_id))
    assert list(sdk.batches.list()) == []
    assert connection.keys("orcd:batch*") == []


def test_a_batch_ends_when_its_window_is_over(
    start_gateway: StartGateway,
    tmp_path: Path,
    connection: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    open_sdk: OpenSdk,
) -> None:
    monkeypatch.setattr("orcd.gateway.batches.batches.WINDOW_S", 1)
    sdk = open_sdk(start_gateway(files_dir=str(tmp_path)))
    batch = ended(sdk, begin(sdk, line("a")))
    assert batch.status == "expired"
    assert connection.zcard(schema.QUEUED) == 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [(line("a", url="/v1/completions"), "url: must be the batch's endpoint"), ("", "")],
)
def test_a_file_that_is_not_for_the_endpoint_fails_the_batch_by_its_line(
    start_gateway: StartGateway, tmp_path: Path, text: str, complaint: str, open_sdk: OpenSdk
) -> None:
    sdk = open_sdk(start_gateway(files_dir=str(tmp_path)))
    batch = ended(sdk, begin(sdk, *([line("ok"), text] if text else ["", ""])))
    if not text:
        assert (batch.status, batch.request_counts.total) == ("completed", 0)
        return
    assert batch.status == "failed"
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    (error,) = batch.errors.data
    assert error.line == 2
    assert complaint in error.message


def test_the_lines_of_a_key_may_only_ask_its_models_as_its_tenant(
    start_gateway: StartGateway, tmp_path: Path, open_sdk: OpenSdk, worker: AnsweringWorker, connection: redis.Redis
) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text('[[keys]]\nname = "a"\nkey = "k"\nmodels = ["demo"]\n[[keys]]\nname = "b"\nkey = "l"')
    url = start_gateway(files_dir=str(tmp_path), api_key_file=str(keys))
    sdk = open_sdk(url, "k")
    batch = ended(sdk, begin(sdk, line("a"), line("b", model="other")))
    assert batch.status == "failed"
    assert batch.errors.data[0].line == 2
    with pytest.raises(openai.NotFoundError):
        open_sdk(url, "l").batches.retrieve(batch.id)
    assert list(open_sdk(url, "l").batches.list()) == []
    batch = ended(sdk, begin(sdk, line("a"), line("b", tenant="other")))
    assert batch.status == "failed"
    assert batch.errors.data[0].message.startswith("body.tenant: ")
    assert ended(sdk, begin(sdk, line("a"), line("b"))).status == "completed"
    tenants = {connection.hget(job, "tenant") for job in connection.scan_iter(schema.job_key("*"))}
    assert len(tenants - {b""}) == len(tenants) == 1


def test_a_gateway_that_cannot_read_the_input_leaves_the_batch_to_one_that_can(
    redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, worker: AnsweringWorker, open_sdk: OpenSdk
) -> None:
    here, elsewhere = (GatewaySettings(redis_url=redis_url, files_dir=str(tmp_path / name)) for name in ("a", "b"))
    for settings in (here, elsewhere):
        Path(settings.files_dir).mkdir()
    with pytest.MonkeyPatch.context() as patched, running(here) as url:
        patched.setattr(batch_runner, "MAX_BATCHES", 0)
        batch_id = begin(open_sdk(url), line("a"))
    with running(elsewhere) as url:
        wait_until(lambda: "another has to run it" in caplog.text)
        assert open_sdk(url).batches.retrieve(batch_id).status == "validating"
        with running(here):
            assert ended(open_sdk(url), batch_id).status == "completed"


def test_a_batch_of_a_file_that_is_not_there_is_refused_by_its_field(
    start_gateway: StartGateway, tmp_path: Path, open_sdk: OpenSdk
) -> None:
    sdk = open_sdk(start_gateway(files_dir=str(tmp_path)))
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.batches.create(input_file_id="file-x", endpoint=URL, completion_window="24h")
    assert caught.value.param == "input_file_id"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"endpoint": []}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"nonsense": 1}, "nonsense"),
        ({"input_file_id": None}, "input_file_id"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, "output_expires_after"),
        ({"output_expires_after": {"seconds": 3600}}, "output_expires_after"),
        ({"output_expires_after": "1h"}, "output_expires_after"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_by_its_field(
    start_gateway: StartGateway, tmp_path: Path, changes: dict[str, Any], param: str, open_sdk: OpenSdk
) -> None:
    sdk = open_sdk(start_gateway(files_dir=str(tmp_path)))
    file = sdk.files.create(file=("in.jsonl", b"x"), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": URL, "completion_window": "24h", **changes}
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.post("/batches", body=body, cast_to=object)
    assert caught.value.param == param
