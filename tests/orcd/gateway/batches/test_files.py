from __future__ import annotations

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from orcd.gateway.batches import batch_runner, file_store, files
from orcd.gateway.batches.file_store import FileObject, FileStore
from tests.conftest import wait_until
from tests.orcd.answering_worker import AnsweringWorker
from tests.orcd.gateway.batches.batch_calls import begin, ended, line
from tests.orcd.gateway.conftest import NO_TLS, OpenSdk, StartGateway


@pytest.fixture
def sdk(start_gateway: StartGateway, tmp_path: Path, open_sdk: OpenSdk) -> openai.OpenAI:
    return open_sdk(start_gateway(files_dir=str(tmp_path)))


def test_a_file_is_kept_listed_read_and_deleted(sdk: openai.OpenAI, tmp_path: Path) -> None:
    kept = sdk.files.create(file=("a.jsonl", b"one\ntwo\n"), purpose="batch")
    assert (kept.filename, kept.bytes, kept.purpose, kept.object) == ("a.jsonl", 8, "batch", "file")
    assert sdk.files.retrieve(kept.id) == kept
    assert sdk.files.content(kept.id).content == b"one\ntwo\n"
    assert [file.id for file in sdk.files.list()] == [kept.id]
    assert [file.id for file in sdk.files.list(purpose="vision")] == []
    assert sdk.files.delete(kept.id).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(kept.id)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_deleted_while_it_is_asked_for_is_not_found(
    sdk: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = sdk.files.create(file=("a", b"x"), purpose="batch")
    find = FileStore.find

    def find_and_delete(store: FileStore, *asked: Any) -> FileObject:
        found = find(store, *asked)
        store.delete(found.id)
        return found

    monkeypatch.setattr(FileStore, "find", find_and_delete)
    with pytest.raises(openai.NotFoundError):
        sdk.files.content(kept.id)


def test_a_file_that_becomes_shorter_while_it_is_sent_keeps_nobody_waiting(
    sdk: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = sdk.files.create(file=("a", b"xyz"), purpose="batch")
    monkeypatch.setattr(files, "_size", lambda _: 5)
    with pytest.raises(openai.APIConnectionError) as caught:
        sdk.with_options(max_retries=0).files.content(kept.id)
    assert not isinstance(caught.value, openai.APITimeoutError)
    monkeypatch.undo()
    assert sdk.files.content(kept.id).content == b"xyz"


def test_a_long_file_comes_whole(sdk: openai.OpenAI) -> None:
    text = bytes(range(256)) * 10_000
    kept = sdk.files.create(file=("a", text), purpose="batch")
    assert sdk.files.content(kept.id).content == text


def test_long_lists_come_a_page_at_a_time(sdk: openai.OpenAI) -> None:
    ids = {sdk.files.create(file=(f"{number}", b"x"), purpose="batch").id for number in range(21)}
    assert {file.id for file in sdk.files.list(limit=8)} == ids
    newest_first = sdk.files.list().data
    assert {file.id for file in newest_first} == ids, "all are on one page"
    assert sdk.files.list(order="asc").data == newest_first[::-1]
    assert [file.id for file in sdk.files.list(order="asc", limit=8)] == [file.id for file in newest_first[::-1]]
    with pytest.raises(openai.BadRequestError, match="after"):
        sdk.files.list(after="file-0")
    with pytest.raises(openai.BadRequestError, match="order"):
        sdk.files.list(order="newest")  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="limit"):
        sdk.files.list(limit=10_001)
    with pytest.raises(openai.BadRequestError, match="purpose"):
        sdk.files.list(purpose="nonsense")


@pytest.mark.parametrize("file_id", ["file-x", "../../etc/passwd", "file-" + "0" * 32, "%2e%2e%2fx"])
def test_only_files_of_ours_are_found(sdk: openai.OpenAI, tmp_path: Path, file_id: str) -> None:
    (tmp_path.parent / "x.json").write_text("{}")
    with httpx.Client(base_url=str(sdk.base_url), verify=NO_TLS) as http:
        assert http.get(f"files/{file_id}").status_code == 404
        assert http.get(f"files/{file_id}/content").status_code == 404
        assert http.delete(f"files/{file_id}").status_code == 404


def test_a_file_that_is_too_long_or_no_form_is_refused(start_gateway: StartGateway, tmp_path: Path) -> None:
    url = start_gateway(files_dir=str(tmp_path), max_file_bytes=1000)
    with httpx.Client(base_url=url, verify=NO_TLS) as http:
        long = http.post("/files", files={"file": b"x" * 2_000_000}, data={"purpose": "batch"})
        assert long.status_code == 413
        assert long.json()["error"]["param"] == "file"
        for response, param in (
            (http.post("/files", data={"purpose": "batch"}), "file"),
            (http.post("/files", files={"file": b"x"}), "purpose"),
            (http.post("/files", files={"file": b"x"}, data={"purpose": "x"}), "purpose"),
        ):
            assert response.status_code == 400
            assert response.json()["error"]["param"] == param
        assert http.post("/files", content=b"--x", headers={"content-type": "multipart/form-data"}).status_code == 400
    assert list(tmp_path.iterdir()) == []


def test_nobody_sees_the_files_of_another_key(start_gateway: StartGateway, tmp_path: Path, open_sdk: OpenSdk) -> None:
    url = start_gateway(files_dir=str(tmp_path), api_keys="one,two")
    one, two = (open_sdk(url, key) for key in ("one", "two"))
    kept = one.files.create(file=("a", b"x"), purpose="batch")
    assert list(two.files.list()) == []
    with pytest.raises(openai.NotFoundError):
        two.files.content(kept.id)


def test_a_gateway_without_a_folder_says_so(http: httpx.Client) -> None:
    response = http.get("/files")
    assert response.status_code == 501
    assert "--files-dir" in response.json()["error"]["message"]


def test_files_that_a_batch_needs_cannot_be_deleted_before_that_has_ended(
    sdk: openai.OpenAI, worker: AnsweringWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runner, "LOOK_S", 0.05)
    worker.max_jobs = 1
    batch_id = begin(sdk, line("a"), line("b"), line("c", nonsense=1))
    wait_until(lambda: sdk.batches.retrieve(batch_id).request_counts.completed == 1)
    batch = sdk.batches.retrieve(batch_id)
    file_ids = (batch.input_file_id, batch.output_file_id, batch.error_file_id)
    for file_id in file_ids:
        with pytest.raises(openai.ConflictError) as caught:
            sdk.files.delete(file_id)
        assert (caught.value.param, caught.value.code) == ("file_id", "file_in_use")
    worker.max_jobs = 2
    assert ended(sdk, batch_id).request_counts.completed == 2
    assert all(sdk.files.delete(file_id).deleted for file_id in file_ids)


def test_a_file_that_expires_is_not_found_from_then_on_and_deleted_later(
    start_gateway: StartGateway, open_sdk: OpenSdk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runner, "LOOK_S", 0.05)
    monkeypatch.setattr(batch_runner, "SWEEP_S", 0)
    sdk = open_sdk(start_gateway(files_dir=str(tmp_path)))
    stays = sdk.files.create(file=("a", b"x"), purpose="batch")
    kept = sdk.files.create(file=("a", b"x"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600})
    assert (stays.expires_at, kept.expires_at) == (None, kept.created_at + 3600)
    assert sdk.files.retrieve(kept.id) == kept
    description = tmp_path / f"{kept.id}.json"
    description.write_text(description.read_text().replace(str(kept.expires_at), str(kept.created_at)))
    for ask in (sdk.files.retrieve, sdk.files.content, sdk.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(kept.id)
    assert [file.id for file in sdk.files.list()] == [stays.id]
    assert (tmp_path / f"{kept.id}.data").exists(), "a batch may read it"
    monkeypatch.setattr(file_store, "LEFT_S", 0)
    wait_until(lambda: {path.stem for path in tmp_path.iterdir()} == {stays.id})


@pytest.mark.parametrize(
    "fields",
    [
        {"expires_after[seconds]": "3600"},
        {"expires_after[anchor]": "created_at"},
        {"expires_after[anchor]": "last_active_at", "expires_after[seconds]": "3600"},
        {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"},
        {"expires_after[anchor]": "created_at", "expires_after[seconds]": "1e4"},
        {"nonsense": "1"},
    ],
    ids=str,
)
def test_a_field_of_an_upload_that_cannot_be_is_refused(
    sdk: openai.OpenAI, tmp_path: Path, fields: dict[str, str]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.files.create(file=("a", b"x"), purpose="batch", extra_body=fields)
    assert caught.value.param == next(iter(fields)).partition("[")[0]
    assert list(tmp_path.iterdir()) == []


def test_a_file_for_which_the_disk_has_no_room_is_an_error_of_the_server_that_says_so(
    sdk: openai.OpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(openai.InternalServerError) as caught:
        sdk.files.create(file=("a", b"x"), purpose="batch")
    assert (caught.value.status_code, caught.value.code) == (503, "files_unavailable")
    assert "No space left on device" in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_nobody_else_waits_for_the_disk_that_an_upload_goes_to(
    sdk: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_slow, may_end = threading.Event(), threading.Event()

    def slow(_: int) -> None:
        is_slow.set()
        may_end.wait(60)

    monkeypatch.setattr("os.fsync", slow)
    with ThreadPoolExecutor() as pool:
        upload = pool.submit(sdk.files.create, file=("a", b"x"), purpose="batch")
        try:
            assert is_slow.wait(60)
            assert list(sdk.with_options(timeout=10).files.list()) == []
        finally:
            may_end.set()
        assert upload.result().bytes == 1
