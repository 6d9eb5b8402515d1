"""Batches whose keys in Redis hold what nobody wrote: they concern one batch, and the others run."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest
import redis

from orcd.gateway.batches import batch_runner
from orcd.store import schema
from tests.conftest import wait_until
from tests.orcd.answering_worker import AnsweringWorker
from tests.orcd.gateway.conftest import OpenSdk, StartGateway

URL = "/v1/chat/completions"


@pytest.fixture
def sdk(
    start_gateway: StartGateway,
    tmp_path: Path,
    worker: AnsweringWorker,
    open_sdk: OpenSdk,
    monkeypatch: pytest.MonkeyPatch,
) -> openai.OpenAI:
    monkeypatch.setattr(batch_runner, "LOOK_S", 0.05)
    return open_sdk(start_gateway(files_dir=str(tmp_path)))


def _begin(sdk: openai.OpenAI) -> str:
    body = {"model": "demo", "messages": [{"role": "user", "content": "count"}]}
    text = json.dumps({"custom_id": "a", "method": "POST", "url": URL, "body": body})
    file = sdk.files.create(file=("in.jsonl", text.encode()), purpose="batch")
    return sdk.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h").id


def _runs_to_its_end(sdk: openai.OpenAI, batch_id: str) -> None:
    wait_until(lambda: sdk.batches.retrieve(batch_id).status == "completed")


def test_records_that_cannot_be_read_stop_no_other_batch(sdk: openai.OpenAI, connection: redis.Redis) -> None:
    """No gateway ran a batch any more, and nothing said why."""
    good = _begin(sdk)
    _runs_to_its_end(sdk, good)
    record = connection.hgetall(schema.batch_key(good))
    damages: list[dict[bytes, bytes] | None] = [
        None,  # a key of another type
        {b"tag": b""},
        record | {b"batch": b"{"},
        record | {b"batch": b'{"id":"batch_1"}'},
        record | {b"batch": b"\xff"},
        record | {b"batch": b"[" * 9000},
        record | {b"models": b"5"},
        record | {b"tag": b"\xff"},
        record,  # that of another batch
    ]
    ids = [f"batch_{number:032x}" for number in range(len(damages))]
    with connection.pipeline() as pipeline:
        for batch_id, fields in zip(ids, damages, strict=True):
            if fields is None:
                pipeline.set(schema.batch_key(batch_id), "x")
            else:
                pipeline.hset(schema.batch_key(batch_id), mapping=fields)  # type: ignore[arg-type]
            pipeline.zadd(schema.batches_of_key(""), {batch_id: 1})
            pipeline.zadd(schema.BATCHES, {batch_id: 0, b"\xff": 0, "batch_gone": 0})
        pipeline.execute()
    _runs_to_its_end(sdk, _begin(sdk))
    wait_until(lambda: connection.zcard(schema.BATCHES) == 0)
    assert good in [each.id for each in sdk.batches.list()]
    for batch_id in ids:
        for ask in (sdk.batches.retrieve, sdk.batches.cancel):
            with pytest.raises(openai.InternalServerError, match=f"{batch_id}: its record in Redis cannot be read"):
                ask(batch_id)


def test_lists_of_batches_of_another_type_are_made_anew(sdk: openai.OpenAI, connection: redis.Redis) -> None:
    """No batch could be made any more."""
    for name in (schema.BATCHES, schema.batches_of_key("")):
        connection.delete(name)
        connection.set(name, "x")
    assert list(sdk.batches.list()) == []
    batch_id = _begin(sdk)
    _runs_to_its_end(sdk, batch_id)
    assert [each.id for each in sdk.batches.list()] == [batch_id]
